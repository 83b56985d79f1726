// The compiler's vectors: AVX2 and AVX-512 are two builds of one text.
#pragma once
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "common.h"

namespace {

#ifdef __AVX512F__
constexpr int kBytes = 64;
#else
constexpr int kBytes = 32;
#endif
constexpr int kLanes = kBytes / 4;
constexpr int kPanel = 2 * kLanes;  // columns that a product works on at a time
constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: a float this large has no digits behind the point
constexpr float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

typedef float Vec __attribute__((vector_size(kBytes)));
typedef int32_t Int __attribute__((vector_size(kBytes)));
typedef uint32_t Bits __attribute__((vector_size(kBytes)));
typedef uint16_t Half __attribute__((vector_size(kBytes / 2)));

inline Vec load(const float* p) {
    Vec x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
inline void store(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }
inline Vec load(const bf16* p) {
    Half x;
    std::memcpy(&x, p, sizeof x);
    return (Vec)(__builtin_convertvector(x, Bits) << 16);
}
inline void store(bf16* p, Vec x) {  // rounds to the nearest, ties to even; NaN stays NaN
    Bits bits = (Bits)x;
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    bits = (x == x) ? bits : Bits{} + 0x7fc0;
    Half half = __builtin_convertvector(bits, Half);
    std::memcpy(p, &half, sizeof half);
}
inline Vec all(float x) { return x - Vec{}; }  // x + 0 would be computed: it turns -0 into 0
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline Vec smaller(Vec a, Vec b) { return a < b ? a : b; }
template <class Join>
inline float fold(Vec x, Join join) {
    float y = x[0];
    for (int i = 1; i < kLanes; i++) y = join(y, x[i]);
    return y;
}

// 2^x for x up to 127; relative error 2e-7. Below -126 exactly 0.
inline Vec exp2(Vec x) {
    const Vec magic = all(kMagic);
    Vec in = larger(x, all(-126.0f)), shifted = in + magic, f = in - (shifted - magic);
    Int whole = (Int)shifted - (Int)magic;
    Vec p = all(1.535336188319500e-4f);
    p = p * f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.0f;
    Int found = (Int)p + (whole << 23);
    return (Vec)(found & (x > all(-126.0f)));
}

}  // namespace
