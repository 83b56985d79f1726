// Causal attention over packed documents for CPUs with AMX: bf16 in and out, fp32 accumulation, grouped-query heads.
//
// A plain C interface without torch headers: compiles in seconds and is tied to no torch version.
//
// Everything is cut into 32 x 32 score blocks, each two by two AMX tiles. Scores are kept transposed (keys down, queries
// across): the statistics of 16 queries are then one vector, so no step needs a horizontal reduction, and the
// probabilities come out of the exponential in the layout that the next product wants. One task is one (row, key head);
// it alone adds to its keys' gradients, in a fixed order, so results do not depend on threads or timing.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace {

using bf16 = uint16_t;
constexpr int kTile = 512;       // bf16 entries of a tile: 16 rows x 64 bytes, stored without gaps
constexpr int kTileF = 256;      // fp32 entries of a tile
constexpr int kMaxTiles = 8;     // head_dim <= 128
constexpr float kMasked = -2e30f;   // score of a key outside the document; below kLowest, so its weight is exactly 0
constexpr float kLowest = -1e30f;   // running maximum before the first key
constexpr float kLog2e = 1.4426950408889634f;

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

// Tiles 0-3 hold C[2][2]; adds A[2] x B[2] of one 32-deep step.
inline void dot_2x2(const bf16* a0, const bf16* a1, const bf16* b0, const bf16* b1) {
    TILE_LOAD(4, a0, 64);
    TILE_LOAD(6, b0, 64);
    TILE_DOT(0, 4, 6);
    TILE_LOAD(7, b1, 64);
    TILE_DOT(1, 4, 7);
    TILE_LOAD(5, a1, 64);
    TILE_DOT(2, 5, 6);
    TILE_DOT(3, 5, 7);
}

inline void zero_2x2() { TILE_ZERO(0); TILE_ZERO(1); TILE_ZERO(2); TILE_ZERO(3); }

inline void load_2x2(const float* c0, const float* c1, const float* c2, const float* c3) {
    TILE_LOAD(0, c0, 64); TILE_LOAD(1, c1, 64); TILE_LOAD(2, c2, 64); TILE_LOAD(3, c3, 64);
}

inline void store_2x2(float* c0, float* c1, float* c2, float* c3) {
    TILE_STORE(0, c0, 64); TILE_STORE(1, c1, 64); TILE_STORE(2, c2, 64); TILE_STORE(3, c3, 64);
}

// A 32 x 32 fp32 block with rows of 128 bytes: [key][query].
inline void store_block(float* s) {
    TILE_STORE(0, s, 128); TILE_STORE(1, s + 16, 128); TILE_STORE(2, s + 512, 128); TILE_STORE(3, s + 528, 128);
}

// 2^x; relative error 2e-7. Large negative x gives exactly 0.
inline __m512 exp2_ps(__m512 x) {
    __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);  // x - round(x)
    __m512 p = _mm512_set1_ps(1.3333558146e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291076e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504108665e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022650696e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718056e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, _mm512_sub_ps(x, f));
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

inline void store_tile(bf16* p, const __m512i* r) {
    for (int i = 0; i < 16; i++) _mm512_store_si512(p + 32 * i, r[i]);
}

// One token matrix of a head: entry (t, d) at p[t * stride + d].
struct Rows {
    const bf16* p;
    int64_t stride;
};

// The four operand layouts of a 32 x 32 piece of tokens x dims X. Null pointers are skipped.
//   rows   [16 tokens][32 dims]        X as left operand         2 tiles, by tokens
//   rows_t [16 dim pairs][16 tokens]   X^T as right operand      2 tiles, by tokens
//   pairs  [16 token pairs][16 dims]   X as right operand        2 tiles, by dims
//   pairs_t[16 dims][32 tokens]        X^T as left operand       2 tiles, by dims
struct Layouts {
    bf16 *rows = nullptr, *rows_t = nullptr, *pairs = nullptr, *pairs_t = nullptr;
};

template <int ND>
void pack(Rows x, int64_t time, int64_t block, Layouts to) {
    alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2, 34, 3, 35, 4, 36, 5, 37, 6, 38, 7, 39,
                                                      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int d = 0; d < ND; d++) {
        __m512i a[16], b0[16], b1[16];
        for (int half = 0; half < 2; half++) {
            for (int i = 0; i < 16; i++) {  // tokens beyond the end are zeros
                int64_t t = block * 32 + half * 16 + i;
                a[i] = t < time ? _mm512_loadu_si512(x.p + t * x.stride + d * 32) : _mm512_setzero_si512();
            }
            int64_t tile = ((block * 2 + half) * ND + d) * kTile;
            if (to.rows) store_tile(to.rows + tile, a);
            if (to.pairs || to.pairs_t)
                for (int i = 0; i < 8; i++) {
                    b0[half * 8 + i] = _mm512_permutex2var_epi16(a[2 * i], low, a[2 * i + 1]);
                    b1[half * 8 + i] = _mm512_permutex2var_epi16(a[2 * i], high, a[2 * i + 1]);
                }
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

}  // namespace

// Strides in entries along (row, token, head); the last dimension is contiguous. Mirrored in kernels/__init__.py.
struct Strides {
    int64_t row, token, head;
};

struct Problem {
    int64_t batch, time, heads, kv_heads, head_dim, threads;
    float scale;
    const int32_t* starts;  // (batch, time) or null
    float* lse;             // (batch, heads, time), in units of log 2
    const bf16 *q, *k, *v, *grad_out;
    bf16 *out, *grad_q, *grad_k, *grad_v;
    Strides q_at, k_at, v_at, out_at, grad_out_at, grad_kv_at;  // grad_q is laid out like out
};

namespace {

template <class T>
T* at(T* p, const Strides& s, int64_t row, int64_t head) { return p + row * s.row + head * s.head; }

// Scratch memory of a thread, kept between calls: fresh pages cost more than the arithmetic.
class Arena {
    char* base_ = nullptr;
    size_t size_ = 0, used_ = 0;

  public:
    ~Arena() { std::free(base_); }
    void reset(size_t bytes) {
        used_ = 0;
        if (bytes <= size_) return;
        std::free(base_);
        size_ = (bytes + 4095) / 4096 * 4096;
        base_ = static_cast<char*>(std::aligned_alloc(4096, size_));
        if (!base_) std::abort();
    }
    template <class T>
    T* take(int64_t count) {
        T* p = reinterpret_cast<T*>(base_ + used_);
        used_ += (count * sizeof(T) + 63) / 64 * 64 + 192;  // the gap keeps arrays off each other's cache sets
        return p;
    }
};
thread_local Arena arena;

// Which keys each query may read, per token and per block of 32.
struct Spans {
    int32_t* start;  // per token; tokens beyond the end read nothing
    int32_t* first;  // per query block: its first key block
    int64_t blocks;

    Spans(const Problem& p, int64_t row) : blocks((p.time + 31) / 32) {
        start = arena.take<int32_t>(blocks * 32);
        first = arena.take<int32_t>(blocks);
        int32_t last = 0;
        for (int64_t t = 0; t < p.time; t++) {  // clamped: no input can make the kernel read outside its arrays
            if (p.starts) last = std::min<int32_t>(std::max(last, p.starts[row * p.time + t]), t);
            start[t] = last;
        }
        std::fill(start + p.time, start + blocks * 32, INT32_MAX);
        for (int64_t i = 0; i < blocks; i++) first[i] = start[i * 32] / 32;
    }
    bool edge(int64_t key, int64_t query) const { return key == query || start[query * 32 + 31] > key * 32; }
    __mmask16 visible(int64_t key, int64_t query) const {  // of the 16 queries from `query`
        const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        __m512i k = _mm512_set1_epi32(key), q = _mm512_add_epi32(lane, _mm512_set1_epi32(query));
        return _mm512_mask_cmple_epi32_mask(_mm512_cmple_epi32_mask(k, q), _mm512_loadu_si512(start + query), k);
    }
};

constexpr int kChunk = 4;  // key blocks between two rescalings of the forward pass

// One block of 32 queries of the forward pass.
template <int ND>
struct Forward {
    const bf16 *k_rows, *v_pairs_t;
    bf16 *q_rows_t, *p;  // p: probabilities, right operand
    float *s, *o;        // scores [key][query]; output transposed, tiles [dim][query]

    static void scale_by(float* o, __m512 a0, __m512 a1) {
        for (int d = 0; d < 2 * ND; d++)
            for (int half = 0; half < 2; half++)
                for (int i = 0; i < 16; i++) {
                    float* at = o + (d * 2 + half) * kTileF + i * 16;
                    _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), half ? a1 : a0));
                }
    }

    void scores(const Spans& spans, int64_t key, int64_t query, float* s) {
        zero_2x2();
        const bf16* k = k_rows + key * 2 * ND * kTile;
        for (int d = 0; d < ND; d++)
            dot_2x2(k + d * kTile, k + (ND + d) * kTile, q_rows_t + d * kTile, q_rows_t + (ND + d) * kTile);
        store_block(s);
        if (!spans.edge(key, query)) return;
        for (int i = 0; i < 32; i++)
            for (int half = 0; half < 2; half++) {
                __mmask16 hidden = ~spans.visible(key * 32 + i, query * 32 + half * 16);
                _mm512_mask_storeu_ps(s + i * 32 + half * 16, hidden, _mm512_set1_ps(kMasked));
            }
    }

    // Turns n blocks of scores into probabilities relative to `m` (in units of log 2) and adds them up in `l`.
    void probabilities(int n, int half, __m512 c, __m512 m, __m512& l) {
        alignas(64) static constexpr uint16_t kMix[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const __m512i mix = _mm512_load_si512(kMix);
        __m512 l0 = l, l1 = _mm512_setzero_ps();
        for (int i = 0; i < n * 32; i += 2) {
            __m512 p0 = exp2_ps(_mm512_fmsub_ps(_mm512_load_ps(s + i * 32 + half * 16), c, m));
            __m512 p1 = exp2_ps(_mm512_fmsub_ps(_mm512_load_ps(s + i * 32 + 32 + half * 16), c, m));
            l0 = _mm512_add_ps(l0, p0), l1 = _mm512_add_ps(l1, p1);
            _mm512_store_si512(p + (i / 32 * 2 + half) * kTile + i % 32 * 16, _mm512_permutexvar_epi16(mix, pack_bf16(p0, p1)));
        }
        l = _mm512_add_ps(l0, l1);
    }

    void run(const Spans& spans, int64_t query, float scale, __m512* m, __m512* l) {
        const __m512 c = _mm512_set1_ps(scale * kLog2e);
        m[0] = m[1] = _mm512_set1_ps(kLowest), l[0] = l[1] = _mm512_setzero_ps();
        for (int64_t key = spans.first[query]; key <= query; key += kChunk) {
            int n = std::min<int64_t>(kChunk, query + 1 - key);
            for (int i = 0; i < n; i++) scores(spans, key + i, query, s + i * 1024);
            __m512 shrink[2];
            for (int half = 0; half < 2; half++) {
                __m512 top = _mm512_set1_ps(kMasked), top1 = top;
                for (int i = 0; i < n * 32; i += 2) {
                    top = _mm512_max_ps(top, _mm512_load_ps(s + i * 32 + half * 16));
                    top1 = _mm512_max_ps(top1, _mm512_load_ps(s + i * 32 + 32 + half * 16));
                }
                top = _mm512_max_ps(m[half], _mm512_mul_ps(c, _mm512_max_ps(top, top1)));
                shrink[half] = exp2_ps(_mm512_sub_ps(m[half], top));
                m[half] = top;
                l[half] = _mm512_mul_ps(l[half], shrink[half]);
                probabilities(n, half, c, top, l[half]);
            }
            bool first = key == spans.first[query];
            if (!first) scale_by(o, shrink[0], shrink[1]);
            for (int d = 0; d < ND; d++) {
                float* to = o + d * 4 * kTileF;
                if (first) zero_2x2();
                else load_2x2(to, to + kTileF, to + 2 * kTileF, to + 3 * kTileF);
                for (int i = 0; i < n; i++) {
                    const bf16* v = v_pairs_t + ((key + i) * ND + d) * 2 * kTile;
                    dot_2x2(v, v + kTile, p + i * 2 * kTile, p + (i * 2 + 1) * kTile);
                }
                store_2x2(to, to + kTileF, to + 2 * kTileF, to + 3 * kTileF);
            }
        }
    }
};

// Writes 16 tokens x 32 dims from two transposed fp32 tiles [dim][token]; token j goes to row first + order(j).
inline void write_transposed(const float* low, const float* high, __m512 factor, bf16* to, int64_t stride, int64_t count,
                             int spread) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i++) {
        a[i] = (__m512i)_mm512_mul_ps(_mm512_load_ps(low + i * 16), factor);
        b[i] = (__m512i)_mm512_mul_ps(_mm512_load_ps(high + i * 16), factor);
    }
    transpose(a), transpose(b);
    for (int j = 0; j < 16; j++) {
        int64_t t = j + j / 4 * spread;
        if (t < count) _mm512_storeu_si512(to + t * stride, pack_bf16((__m512)a[j], (__m512)b[j]));
    }
}

template <int ND>
void forward_task(const Problem& p, int64_t row, int64_t kv_head) {
    const int64_t blocks = (p.time + 31) / 32, entries = blocks * 32 * ND * 32, group = p.heads / p.kv_heads;
    arena.reset(entries * 4 + blocks * 256 + 65536);
    Spans spans(p, row);
    bf16 *k = arena.take<bf16>(entries), *v = arena.take<bf16>(entries);
    Forward<ND> f{k, v, arena.take<bf16>(2 * ND * kTile), arena.take<bf16>(kChunk * 1024),
                  arena.take<float>(kChunk * 1024), arena.take<float>(ND * 1024)};
    for (int64_t i = 0; i < blocks; i++) {
        pack<ND>({at(p.k, p.k_at, row, kv_head), p.k_at.token}, p.time, i, {.rows = k});
        pack<ND>({at(p.v, p.v_at, row, kv_head), p.v_at.token}, p.time, i, {.pairs_t = v});
    }
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
        for (int64_t i = 0; i < blocks; i++) {
            const bf16* q = at(p.q, p.q_at, row, head) + i * 32 * p.q_at.token;
            const int64_t left = p.time - i * 32;
            pack<ND>({q, p.q_at.token}, left, 0, {.rows_t = f.q_rows_t});
            __m512 m[2], l[2];
            f.run(spans, i, p.scale, m, l);
            for (int half = 0; half < 2; half++) {
                alignas(64) float sums[16], tops[16];
                _mm512_store_ps(sums, l[half]), _mm512_store_ps(tops, m[half]);
                for (int j = 0; j < 16 && half * 16 + j < left; j++)
                    p.lse[(row * p.heads + head) * p.time + i * 32 + half * 16 + j] = tops[j] + std::log2(sums[j]);
                __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), l[half]);
                for (int d = 0; d < ND; d++) {
                    const float* o = f.o + (d * 4 + half) * kTileF;
                    bf16* to = at(p.out, p.out_at, row, head) + (i * 32 + half * 16) * p.out_at.token + d * 32;
                    write_transposed(o, o + 2 * kTileF, inverse, to, p.out_at.token, left - half * 16, 0);
                }
            }
        }
}
