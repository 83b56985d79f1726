// The rows of an attention head: rotated, packed as operands of tiles, and written back.
#pragma once
#include "tiles.h"

namespace {

// One token matrix of a head: entry (t, d) at p[t * stride + d].
struct Rows {
    const bf16* p;
    int64_t stride;

    __m512i load(int64_t t, int d) const { return _mm512_loadu_si512(p + t * stride + d * 32); }  // dims from 32 d
};

// Rotary embedding of a row's tokens, ND * 32 dims: the tables hold ND * 16 angles per token, that of dims i and
// i + ND * 16.
template <int ND>
struct Rotation {
    const float *cos, *sin;

    // The 16 dims from 16 i of token t: `own`, and those they are paired with.
    __m512 turn(int64_t t, int i, __m512 own, __m512 paired) const {
        const int64_t at = (t * ND + i % ND) * 16;
        __m512 sine = _mm512_mul_ps(paired, _mm512_loadu_ps(sin + at));
        __m512 cosine = _mm512_loadu_ps(cos + at);
        return i < ND ? _mm512_fmsub_ps(own, cosine, sine) : _mm512_fmadd_ps(own, cosine, sine);
    }
    // The transpose: what a gradient goes through.
    __m512 turn_back(int64_t t, int i, __m512 own, __m512 paired) const {
        return turn(t, i, own, _mm512_sub_ps(_mm512_setzero_ps(), paired));
    }
};

// Rows as they are after their rotation, rounded to bf16.
template <int ND>
struct RotatedRows {
    Rows rows;
    Rotation<ND> rotation;

    RotatedRows from(int64_t t) const {
        const int64_t angles = t * ND * 16;
        return {{rows.p + t * rows.stride, rows.stride}, {rotation.cos + angles, rotation.sin + angles}};
    }
    __m512 piece(int64_t t, int i) const {
        __m256i half = _mm256_loadu_si256((const __m256i*)(rows.p + t * rows.stride + i * 16));
        return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
    }
    __m512 turned(int64_t t, int i) const { return rotation.turn(t, i, piece(t, i), piece(t, (i + ND) % (2 * ND))); }
    __m512i load(int64_t t, int d) const { return pack_bf16(turned(t, 2 * d), turned(t, 2 * d + 1)); }
};

// The four operand layouts of a 32 x 32 piece of tokens x dims X. Null pointers are skipped.
//   rows   [16 tokens][32 dims]        X as left operand         2 tiles, by tokens
//   rows_t [16 dim pairs][16 tokens]   X^T as right operand      2 tiles, by tokens
//   pairs  [16 token pairs][16 dims]   X as right operand        2 tiles, by dims
//   pairs_t[16 dims][32 tokens]        X^T as left operand       2 tiles, by dims
struct Layouts {
    bf16 *rows = nullptr, *rows_t = nullptr, *pairs = nullptr, *pairs_t = nullptr;
};

template <int ND, class Source>
void pack(const Source& x, int64_t time, int64_t block, Layouts to) {
    for (int d = 0; d < ND; d++) {
        __m512i a[16], b0[16], b1[16];
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 16; i++) {  // tokens beyond the end are zeros
                int64_t t = block * 32 + half * 16 + i;
                a[i] = t < time ? x.load(t, d) : _mm512_setzero_si512();
            }
            int64_t tile = ((block * 2 + half) * ND + d) * kTile;
            if (to.rows) store_tile(to.rows + tile, a);
            if (to.pairs || to.pairs_t)
                for (int i = 0; i < 8; i++) interleave(a[2 * i], a[2 * i + 1], b0[half * 8 + i], b1[half * 8 + i]);
            if (to.rows_t) {
                transpose(a);
                store_tile(to.rows_t + tile, a);
            }
        }
        int64_t tile = (block * ND + d) * 2 * kTile;
        if (to.pairs) store_tile(to.pairs + tile, b0), store_tile(to.pairs + tile + kTile, b1);
        if (to.pairs_t) {
            transpose(b0), transpose(b1);
            store_tile(to.pairs_t + tile, b0), store_tile(to.pairs_t + tile + kTile, b1);
        }
    }
}

// Tiles [dim][token] of 2 ND x 16 dims and 16 tokens, two tiles apart, into tiles [token][dim] without gaps.
template <int ND>
void turn_tiles(const float* from, __m512 factor, float* to) {
    for (int i = 0; i < 2 * ND; i++) {
        __m512i a[16];
        for (int j = 0; j < 16; j++)
            a[j] = (__m512i)_mm512_mul_ps(_mm512_load_ps(from + i * 2 * kTileF + j * 16), factor);
        transpose(a);
        for (int j = 0; j < 16; j++) _mm512_store_si512(to + i * kTileF + j * 16, a[j]);
    }
}

// Writes tiles [token][dim] of 16 tokens as rows of bf16, times a factor; a rotation, if given, is transposed. Row j of the
// tiles is token first + j + j / 4 * spread. Written past the caches: whoever reads it comes too late to find it there.
template <int ND>
void write_rows(const float* tiles, float scale, const Rotation<ND>* rotation, bf16* to, int64_t stride, int64_t first,
                int64_t time, int spread = 0) {
    const __m512 factor = _mm512_set1_ps(scale);
    for (int j = 0; j < 16; j++) {
        const int64_t t = first + j + j / 4 * spread;
        if (t >= time) break;
        __m512 x[2 * ND], y[2 * ND];
        for (int i = 0; i < 2 * ND; i++) y[i] = x[i] = _mm512_mul_ps(_mm512_load_ps(tiles + i * kTileF + j * 16), factor);
        for (int i = 0; rotation && i < 2 * ND; i++) y[i] = rotation->turn_back(t, i, x[i], x[(i + ND) % (2 * ND)]);
        for (int d = 0; d < ND; d++)
            _mm512_stream_si512((__m512i*)(to + t * stride + d * 32), pack_bf16(y[2 * d], y[2 * d + 1]));
    }
}

}  // namespace
