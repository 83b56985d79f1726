// What the attention kernels are given. Mirrored in kernels/__init__.py.
#pragma once
#include "common.h"

// All tensors without gaps.
struct Problem {
    int64_t batch, time, heads, kv_heads, head_dim, threads;
    int64_t rope_row;  // entries from one row's tables to the next's; 0: all rows share them
    int64_t wide;      // 1: qkv, out and their gradients are float32, which only the vector kernel takes
    float scale;
    const int32_t* starts;   // (batch, time) or null
    const float *cos, *sin;  // (batch or 1, time, head_dim / 2)
    float* lse;              // (batch, heads, time), in units of log 2
    const bf16* qkv;         // (batch, time, heads + 2 kv_heads, head_dim)
    bf16* out;               // (batch, time, heads, head_dim)
    const bf16* grad_out;    // as out
    bf16* grad_qkv;          // as qkv

    int64_t key(int64_t kv_head) const { return heads + kv_head; }
    int64_t value(int64_t kv_head) const { return heads + kv_heads + kv_head; }
    int64_t stride() const { return (heads + 2 * kv_heads) * head_dim; }  // from token to token of qkv ...
    int64_t out_stride() const { return heads * head_dim; }               // ... and of out
    int64_t at(int64_t row, int64_t head) const { return row * time * stride() + head * head_dim; }
    int64_t out_at(int64_t row, int64_t head) const { return row * time * out_stride() + head * head_dim; }
};
