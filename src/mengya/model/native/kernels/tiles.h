// AMX tiles of bf16: products, transposition and the exponential, for the kernels of this folder.
#pragma once
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "common.h"

extern "C" {
// Asks the system for the right to use tiles; 0 if granted.
int init() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */) ? 1 : 0; }
}

namespace {

constexpr int kTile = 512;   // bf16 entries of a tile: 16 rows x 64 bytes, stored without gaps
constexpr int kTileF = 256;  // fp32 entries of a tile

// The intrinsics of some compilers do not tell them that tiles read memory; these do.
#define TILE_LOAD(t, p, stride) asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"(int64_t(stride)) : "memory")
#define TILE_STORE(t, p, stride) asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"(int64_t(stride)) : "memory")
#define TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::)
#define TILE_DOT(c, a, b) asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

struct TileConfig {
    alignas(64) uint8_t bytes[64] = {1};
    TileConfig() {
        for (int i = 0; i < 8; i++) bytes[16 + 2 * i] = 64, bytes[48 + i] = 16;
        asm volatile("ldtilecfg (%0)" ::"r"(bytes) : "memory");
    }
    ~TileConfig() { asm volatile("tilerelease" ::: "memory"); }
};

// C += sum over n steps of A B, C being two by two tiles: the only product of this file.
struct Product {
    const bf16 *a, *b;
    float* c;
    const float* init;  // null: C starts at zero; c: C goes on; anything else: every row of C starts as this one
    int64_t n, a_pair, a_step, b_pair, b_step;  // entries to the second tile, and to the next step
    int64_t c_down, c_right, c_row;             // entries to the tile below, to the tile beside; bytes to the next row
    int64_t a_row = 64;                         // bytes to the next row of A
};

// between() is called after every step: other work that the tile unit does not wait for.
template <class Between>
inline __attribute__((always_inline)) void multiply(const Product& p, Between between) {
    if (!p.init) {
        TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3);
    } else {
        const int64_t down = p.init == p.c ? p.c_down : 0, row = p.init == p.c ? p.c_row : 0;
        TILE_LOAD(0, p.init, row); TILE_LOAD(1, p.init + p.c_right, row);
        TILE_LOAD(2, p.init + down, row); TILE_LOAD(3, p.init + down + p.c_right, row);
    }
    for (int64_t i = 0; i < p.n; i++) {
        const bf16 *a = p.a + i * p.a_step, *b = p.b + i * p.b_step;
        TILE_LOAD(4, a, p.a_row); TILE_LOAD(6, b, 64);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, b + p.b_pair, 64);
        TILE_DOT(1, 4, 7);
        TILE_LOAD(5, a + p.a_pair, p.a_row);
        TILE_DOT(2, 5, 6); TILE_DOT(3, 5, 7);
        between();
    }
    TILE_STORE(0, p.c, p.c_row); TILE_STORE(1, p.c + p.c_right, p.c_row);
    TILE_STORE(2, p.c + p.c_down, p.c_row); TILE_STORE(3, p.c + p.c_down + p.c_right, p.c_row);
}

inline __attribute__((always_inline)) void multiply(const Product& p) { multiply(p, [] {}); }

// 2^x; relative error 3e-6, a thousandth of what bf16 rounds off. Large negative x gives exactly 0.
inline __m512 exp2_ps(__m512 x) {
    __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);  // x - floor(x)
    __m512 p = _mm512_set1_ps(0.01353416773f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.052011463293f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.2414427534f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69300383577f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000025933f));
    return _mm512_scalef_ps(p, x);  // p * 2^floor(x)
}

inline __m512i pack_bf16(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }

inline void transpose(__m512i* r) {  // 16 x 16 entries of 32 bits
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            r[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + j + 2]);
            r[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + j + 2]);
        }
    for (int i = 0; i < 4; i++) {  // r[4q + i] holds column 4 * lane + i of rows 4q .. 4q + 3
        t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
        t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
        t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
        t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
        r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
        r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
        r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
    }
}

// Rows 2i and 2i + 1 of 32 columns -> pairs of the low 16 columns, pairs of the high ones.
inline void interleave(__m512i even, __m512i odd, __m512i& low, __m512i& high) {
    alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
                                                      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i first = _mm512_load_si512(kLow), second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
    low = _mm512_permutex2var_epi16(even, first, odd);
    high = _mm512_permutex2var_epi16(even, second, odd);
}

inline void store_tile(bf16* p, const __m512i* r) {
    for (int i = 0; i < 16; i++) _mm512_store_si512(p + 32 * i, r[i]);
}

}  // namespace
