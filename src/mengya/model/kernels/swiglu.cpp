// The gate of SwiGLU for CPUs with AVX-512: h = silu(gate) * up, and its gradients. bf16 in and out, fp32 in between.
//
// Rows hold gate and up side by side: (rows, 2 * size), size a multiple of 32. One pass each, no temporaries.
#include "tiles.h"

struct Gate {
    int64_t rows, size, threads;
    const bf16 *gate_up, *grad_h;
    bf16 *h, *grad_gate_up;  // h (rows, size), written by both passes
};

namespace {

inline __m512 widen(__m256i x) { return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16); }
inline __m512 load(const bf16* p) { return widen(_mm256_loadu_si256((const __m256i*)p)); }
inline void store(bf16* p, __m512 low, __m512 high) { _mm512_storeu_si512(p, pack_bf16(low, high)); }
inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1), e = exp2_ps(_mm512_mul_ps(x, _mm512_set1_ps(-1.4426950408889634f)));
    return _mm512_div_ps(one, _mm512_add_ps(one, e));
}

}  // namespace

extern "C" {

int swiglu_init() { return 0; }

void swiglu_forward(const Gate* g) {
#pragma omp parallel for num_threads(g->threads)
    for (int64_t row = 0; row < g->rows; row++) {
        const bf16 *gate = g->gate_up + row * 2 * g->size, *up = gate + g->size;
        for (int64_t i = 0; i < g->size; i += 32) {
            __m512 h[2];
            for (int half = 0; half < 2; half++) {
                const __m512 x = load(gate + i + half * 16);
                h[half] = _mm512_mul_ps(_mm512_mul_ps(x, sigmoid(x)), load(up + i + half * 16));
            }
            store(g->h + row * g->size + i, h[0], h[1]);
        }
    }
}

void swiglu_backward(const Gate* g) {
#pragma omp parallel for num_threads(g->threads)
    for (int64_t row = 0; row < g->rows; row++) {
        const bf16 *gate = g->gate_up + row * 2 * g->size, *up = gate + g->size, *grad = g->grad_h + row * g->size;
        bf16 *grad_gate = g->grad_gate_up + row * 2 * g->size, *grad_up = grad_gate + g->size;
        for (int64_t i = 0; i < g->size; i += 32) {
            __m512 h[2], dg[2], du[2];
            for (int half = 0; half < 2; half++) {
                const __m512 x = load(gate + i + half * 16), u = load(up + i + half * 16), d = load(grad + i + half * 16);
                const __m512 s = sigmoid(x), silu = _mm512_mul_ps(x, s);
                h[half] = _mm512_mul_ps(silu, u);
                du[half] = _mm512_mul_ps(d, silu);
                // silu' = s + silu (1 - s)
                const __m512 slope = _mm512_add_ps(s, _mm512_fnmadd_ps(silu, s, silu));
                dg[half] = _mm512_mul_ps(_mm512_mul_ps(d, u), slope);
            }
            store(g->h + row * g->size + i, h[0], h[1]);
            store(grad_gate + i, dg[0], dg[1]);
            store(grad_up + i, du[0], du[1]);
        }
    }
}
}
