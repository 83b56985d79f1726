// Causal attention over packed documents for CPUs with AMX: bf16 in and out, fp32 accumulation, grouped-query heads,
// rotary embeddings. Queries, keys and values lie side by side, as their projection leaves them; so do their gradients.
//
// A plain C interface without torch headers: compiles in seconds and is tied to no torch version.
//
// Everything is cut into 32 x 32 score blocks, each two by two AMX tiles. Scores are kept transposed (keys down, queries
// across): the statistics of 16 queries are then one vector, so no step needs a horizontal reduction, and the
// probabilities come out of the exponential in the layout that the next product wants. One task is one (row, key head);
// it alone adds to its keys' gradients, in a fixed order, so results do not depend on threads or timing.

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "attention_problem.h"
#include "heads.h"

namespace {

Rows rows_of(const Problem& p, int64_t row, int64_t head) { return {p.qkv + p.at(row, head), p.stride()}; }
template <int ND>
Rotation<ND> rotation_of(const Problem& p, int64_t row) { return {p.cos + row * p.rope_row, p.sin + row * p.rope_row}; }

constexpr float kMasked = -1e38f;  // score of a key outside the document; far below kLowest, so its weight is exactly 0
constexpr float kLowest = -1e30f;  // running maximum before the first key
constexpr float kLog2e = 1.4426950408889634f;

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
        multiply({k_rows + key * 2 * ND * kTile, q_rows_t, s, nullptr, ND,
                  ND * kTile, kTile, ND * kTile, kTile, 512, 16, 128});
        if (!spans.edge(key, query)) return;
        for (int i = 0; i < 32; i++)
            for (int half = 0; half < 2; half++) {
                __mmask16 hidden = ~spans.visible(key * 32 + i, query * 32 + half * 16);
                _mm512_mask_storeu_ps(s + i * 32 + half * 16, hidden, _mm512_set1_ps(kMasked));
            }
    }

    // Turns n blocks of scores into probabilities relative to the maximum `m` and adds them up in `l`.
    void probabilities(int n, int half, __m512 c, __m512 m, __m512& l) {
        alignas(64) static constexpr uint16_t kMix[32] = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                                          8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const __m512i mix = _mm512_load_si512(kMix);
        __m512 l0 = l, l1 = _mm512_setzero_ps();
        for (int i = 0; i < n * 32; i += 2) {
            const float* at = s + i * 32 + half * 16;  // subtracted before scaling: exactly 0 at the maximum
            __m512 p0 = exp2_ps(_mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(at), m), c));
            __m512 p1 = exp2_ps(_mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(at + 32), m), c));
            l0 = _mm512_add_ps(l0, p0), l1 = _mm512_add_ps(l1, p1);
            bf16* to = p + (i / 32 * 2 + half) * kTile + i % 32 * 16;
            _mm512_store_si512(to, _mm512_permutexvar_epi16(mix, pack_bf16(p0, p1)));
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
                top = _mm512_max_ps(m[half], _mm512_max_ps(top, top1));
                shrink[half] = exp2_ps(_mm512_mul_ps(_mm512_sub_ps(m[half], top), c));
                m[half] = top;
                l[half] = _mm512_mul_ps(l[half], shrink[half]);
                probabilities(n, half, c, top, l[half]);
            }
            bool first = key == spans.first[query];
            if (!first) scale_by(o, shrink[0], shrink[1]);
            for (int d = 0; d < ND; d++) {
                float* to = o + d * 4 * kTileF;
                multiply({v_pairs_t + (key * ND + d) * 2 * kTile, p, to, first ? nullptr : to, n,
                          kTile, 2 * ND * kTile, kTile, 2 * kTile, 2 * kTileF, kTileF, 64});
            }
        }
    }
};

template <int ND>
void forward_task(const Problem& p, int64_t row, int64_t kv_head) {
    const int64_t blocks = (p.time + 31) / 32, entries = blocks * 32 * ND * 32, group = p.heads / p.kv_heads;
    arena.reset(entries * 4 + blocks * 256 + 65536);
    Spans spans(p, row);
    bf16 *k = arena.take<bf16>(entries), *v = arena.take<bf16>(entries);
    Forward<ND> f{k, v, arena.take<bf16>(2 * ND * kTile), arena.take<bf16>(kChunk * 1024),
                  arena.take<float>(kChunk * 1024), arena.take<float>(ND * 1024)};
    float* turned = arena.take<float>(ND * 512);
    const Rotation<ND> rotation = rotation_of<ND>(p, row);
    for (int64_t i = 0; i < blocks; i++) {
        pack<ND>(RotatedRows<ND>{rows_of(p, row, p.key(kv_head)), rotation}, p.time, i, {.rows = k});
        pack<ND>(rows_of(p, row, p.value(kv_head)), p.time, i, {.pairs_t = v});
    }
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
        const RotatedRows<ND> queries{rows_of(p, row, head), rotation};
        for (int64_t i = 0; i < blocks; i++) {
            const int64_t left = p.time - i * 32;
            float* lse = p.lse + (row * p.heads + head) * p.time + i * 32;
            pack<ND>(queries.from(i * 32), left, 0, {.rows_t = f.q_rows_t});
            __m512 m[2], l[2];
            f.run(spans, i, p.scale, m, l);
            for (int half = 0; half < 2; half++) {
                alignas(64) float sums[16], tops[16];
                _mm512_store_ps(sums, l[half]), _mm512_store_ps(tops, m[half]);
                for (int j = 0; j < 16 && half * 16 + j < left; j++)
                    lse[half * 16 + j] = tops[j] * p.scale * kLog2e + std::log2(sums[j]);
                __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), l[half]);
                turn_tiles<ND>(f.o + half * kTileF, inverse, turned);
                write_rows<ND>(turned, 1, nullptr, p.out + p.out_at(row, head), p.out_stride(), i * 32 + half * 16, p.time);
            }
        }
    }
}

// Blocks of keys and queries handled together by the backward pass: larger ones move fewer accumulators, but their
// probabilities must stay in the second-level cache.
constexpr int kKeys = 4, kQueries = 8;

template <int ND>
struct Backward {
    const Spans& spans;
    int64_t blocks;
    bf16 *k_rows, *k_pairs_t, *v_rows;                  // of the key head
    bf16 *q_rows_t, *q_pairs, *g_rows_t, *g_pairs;      // of one query head; g: gradient of the output
    float *lse, *delta;                                 // delta: -sum of output * gradient
    float *grad_k, *grad_v, *grad_q_t;                  // fp32 tiles
    bf16 *p, *ds, *ds_pairs;                            // [key block][query block][2 tiles]; keys down
    float* s;                                           // scores, and dP - delta, of one block

    Backward(const Spans& spans, int64_t blocks) : spans(spans), blocks(blocks) {
        const int64_t entries = blocks * 1024 * ND, probabilities = kKeys * kQueries * 2 * kTile;
        for (bf16** a : {&k_rows, &k_pairs_t, &v_rows, &q_rows_t, &q_pairs, &g_rows_t, &g_pairs})
            *a = arena.take<bf16>(entries);
        for (float** a : {&lse, &delta}) *a = arena.take<float>(blocks * 32);
        for (float** a : {&grad_k, &grad_v, &grad_q_t}) *a = arena.take<float>(entries);
        for (bf16** a : {&p, &ds, &ds_pairs}) *a = arena.take<bf16>(probabilities);
        s = arena.take<float>(2048);
    }
    static size_t bytes(int64_t blocks) {
        return blocks * (1024 * ND * 26 + 512) + kKeys * kQueries * 6 * kTile * 2 + 32768;
    }

    void pack_head(const Problem& problem, int64_t row, int64_t head) {
        const int64_t time = problem.time, out_at = problem.out_at(row, head);
        const RotatedRows<ND> q{rows_of(problem, row, head), rotation_of<ND>(problem, row)};
        const Rows g{problem.grad_out + out_at, problem.out_stride()}, out{problem.out + out_at, problem.out_stride()};
        for (int64_t i = 0; i < blocks; i++) {
            pack<ND>(q, time, i, {.rows_t = q_rows_t, .pairs = q_pairs});
            pack<ND>(g, time, i, {.rows_t = g_rows_t, .pairs = g_pairs});
        }
        for (int64_t t = 0; t < blocks * 32; t++) {
            __m512 sum = _mm512_setzero_ps();
            if (t < time)
                for (int d = 0; d < ND; d++)
                    sum = _mm512_dpbf16_ps(sum, (__m512bh)g.load(t, d), (__m512bh)out.load(t, d));
            delta[t] = -_mm512_reduce_add_ps(sum);
            lse[t] = t < time ? problem.lse[(row * problem.heads + head) * time + t] : 0;
        }
    }

    // S^T = K Q^T and dP^T - delta = V dO^T - delta of a block.
    void scores(int64_t key, int64_t query) {
        const int64_t a = key * 2 * ND * kTile, b = query * 2 * ND * kTile;
        multiply({k_rows + a, q_rows_t + b, s, nullptr, ND, ND * kTile, kTile, ND * kTile, kTile, 512, 16, 128});
        multiply({v_rows + a, g_rows_t + b, s + 1024, delta + query * 32, ND,
                  ND * kTile, kTile, ND * kTile, kTile, 512, 16, 128});
    }

    // P^T = exp2(c S^T - lse), dS^T = P^T (dP^T - delta) of one 32 x 32 block, as left operands and dS as right operand.
    // The right operand's columns come out in the order that unpacking gives: see write_grad_q.
    template <bool edge>
    void elementwise(int64_t key, int64_t query, __m512 c, int64_t to) {
        const __m512 zero = _mm512_setzero_ps();
        const __m512 lse0 = _mm512_loadu_ps(lse + query * 32), lse1 = _mm512_loadu_ps(lse + query * 32 + 16);
        for (int i = 0; i < 32; i += 2) {
            __m512i pair[2];
            for (int j = i; j < i + 2; j++) {
                // At most 0 but for rounding, and for keys out of reach: without the bound huge scores would overflow.
                __m512 x0 = _mm512_min_ps(zero, _mm512_fmsub_ps(_mm512_load_ps(s + j * 32), c, lse0));
                __m512 x1 = _mm512_min_ps(zero, _mm512_fmsub_ps(_mm512_load_ps(s + j * 32 + 16), c, lse1));
                __m512 p0 = exp2_ps(x0), p1 = exp2_ps(x1);
                __m512 ds0 = _mm512_load_ps(s + 1024 + j * 32), ds1 = _mm512_load_ps(s + 1024 + j * 32 + 16);
                if (edge) {
                    __mmask16 m0 = spans.visible(key * 32 + j, query * 32);
                    __mmask16 m1 = spans.visible(key * 32 + j, query * 32 + 16);
                    p0 = _mm512_maskz_mov_ps(m0, p0), p1 = _mm512_maskz_mov_ps(m1, p1);
                    ds0 = _mm512_maskz_mov_ps(m0, ds0), ds1 = _mm512_maskz_mov_ps(m1, ds1);
                }
                _mm512_store_si512(p + to + j * 32, pack_bf16(p0, p1));
                pair[j - i] = pack_bf16(_mm512_mul_ps(p0, ds0), _mm512_mul_ps(p1, ds1));
                _mm512_store_si512(ds + to + j * 32, pair[j - i]);
            }
            _mm512_store_si512(ds_pairs + to + i * 16, _mm512_unpacklo_epi16(pair[0], pair[1]));
            _mm512_store_si512(ds_pairs + to + kTile + i * 16, _mm512_unpackhi_epi16(pair[0], pair[1]));
        }
    }

    // All blocks of keys [k0, k1) x queries [q0, q1) that anyone may read.
    void panel(int64_t k0, int64_t k1, int64_t q0, int64_t q1, __m512 c, bool first_head) {
        auto tile = [&](int64_t key, int64_t query) { return ((key - k0) * kQueries + query - q0) * 2 * kTile; };
        for (int64_t q = q0; q < q1; q++)
            for (int64_t k = std::max<int64_t>(k0, spans.first[q]); k < std::min(k1, q + 1); k++) {
                scores(k, q);
                if (spans.edge(k, q)) elementwise<true>(k, q, c, tile(k, q));
                else elementwise<false>(k, q, c, tile(k, q));
            }
        for (int i = 0; i < 2 * ND; i++)  // gradients of values, then of keys
            for (int64_t k = k0; k < k1; k++) {
                int64_t from = std::max(q0, k), to = from;
                while (to < q1 && spans.first[to] <= k) to++;
                if (from == to) continue;
                const bf16* right = (i < ND ? g_pairs : q_pairs) + (from * ND + i % ND) * 2 * kTile;
                float* grad = (i < ND ? grad_v : grad_k) + (k * 2 * ND + i % ND) * 2 * kTileF;
                const float* init = first_head && from == k ? nullptr : grad;
                multiply({(i < ND ? p : ds) + tile(k, from), right, grad, init, to - from,
                          kTile, 2 * kTile, kTile, 2 * ND * kTile, 2 * ND * kTileF, kTileF, 64});
            }
        for (int d = 0; d < ND; d++)  // gradients of queries
            for (int64_t q = q0; q < q1; q++) {
                int64_t from = std::max<int64_t>(k0, spans.first[q]), to = std::min(k1, q + 1);
                if (from >= to) continue;
                float* grad = grad_q_t + (q * ND + d) * 4 * kTileF;
                multiply({k_pairs_t + (from * ND + d) * 2 * kTile, ds_pairs + tile(from, q), grad,
                          from == spans.first[q] ? nullptr : grad, to - from,
                          kTile, 2 * ND * kTile, kTile, kQueries * 2 * kTile, 2 * kTileF, kTileF, 64});
            }
    }

    // One query head.
    void run(__m512 c, bool first_head) {
        for (int64_t k0 = 0; k0 < blocks; k0 += kKeys) {
            const int64_t k1 = std::min(blocks, k0 + kKeys);
            for (int64_t q0 = k0; q0 < blocks && spans.first[q0] < k1; q0 += kQueries)
                panel(k0, k1, q0, std::min(blocks, q0 + kQueries), c, first_head);
        }
    }

    void write_grad_q(const Rotation<ND>& rotation, bf16* to, int64_t stride, int64_t time, float scale) {
        for (int64_t i = 0; i < blocks; i++)
            for (int half = 0; half < 2; half++) {  // column j is query j + j / 4 * 4 (+ 4 in the second half)
                turn_tiles<ND>(grad_q_t + (i * ND * 4 + half) * kTileF, _mm512_set1_ps(scale), s);
                write_rows<ND>(s, 1, &rotation, to, stride, i * 32 + half * 4, time, 4);
            }
    }

    void write_grad_kv(const float* from, const Rotation<ND>* rotation, bf16* to, int64_t stride, int64_t time,
                       float scale) {
        for (int64_t i = 0; i < 2 * blocks; i++)
            write_rows<ND>(from + i * 2 * ND * kTileF, scale, rotation, to, stride, i * 16, time);
    }
};

template <int ND>
void backward_task(const Problem& p, int64_t row, int64_t kv_head) {
    const int64_t blocks = (p.time + 31) / 32, group = p.heads / p.kv_heads;
    arena.reset(Backward<ND>::bytes(blocks));
    Spans spans(p, row);
    Backward<ND> b(spans, blocks);
    const Rotation<ND> rotation = rotation_of<ND>(p, row);
    const RotatedRows<ND> keys{rows_of(p, row, p.key(kv_head)), rotation};
    for (int64_t i = 0; i < blocks; i++) {
        pack<ND>(keys, p.time, i, {.rows = b.k_rows, .pairs_t = b.k_pairs_t});
        pack<ND>(rows_of(p, row, p.value(kv_head)), p.time, i, {.rows = b.v_rows});
    }
    const __m512 c = _mm512_set1_ps(p.scale * kLog2e);
    for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++) {
        b.pack_head(p, row, head);
        b.run(c, head == kv_head * group);
        b.write_grad_q(rotation, p.grad_qkv + p.at(row, head), p.stride(), p.time, p.scale);
    }
    bf16 *grad_k = p.grad_qkv + p.at(row, p.key(kv_head)), *grad_v = p.grad_qkv + p.at(row, p.value(kv_head));
    b.write_grad_kv(b.grad_k, &rotation, grad_k, p.stride(), p.time, p.scale);
    b.write_grad_kv(b.grad_v, nullptr, grad_v, p.stride(), p.time, 1);
}

template <class Task>
void for_each_head(const Problem& p, Task task) {
#pragma omp parallel num_threads(p.threads)
    {
        TileConfig tiles;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < p.batch * p.kv_heads; i++) task(p, i / p.kv_heads, i % p.kv_heads);
        _mm_sfence();  // results are written past the caches: other threads may see them only after this
    }
}

}  // namespace

extern "C" {

void attention_forward(const Problem* p) {
    for_each_head(*p, p->head_dim == 32   ? forward_task<1>
                      : p->head_dim == 64 ? forward_task<2>
                      : p->head_dim == 96 ? forward_task<3>
                                          : forward_task<4>);
}

void attention_backward(const Problem* p) {
    for_each_head(*p, p->head_dim == 32   ? backward_task<1>
                      : p->head_dim == 64 ? backward_task<2>
                      : p->head_dim == 96 ? backward_task<3>
                                          : backward_task<4>);
}
}
