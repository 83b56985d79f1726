// Causal attention over packed documents for CPUs without AMX: float32 or bf16 in and out, float32 in between,
// grouped-query heads, rotary embeddings. The interface is that of attention.cpp; so is its order of work: one task is
// one (row, key head), which alone adds to its keys' gradients, so that results do not depend on threads.
//
// Written over the compiler's vectors: AVX2 and AVX-512 are two builds of this text. A block of queries meets only the
// keys from the start of its first document to its last query, in panels of two vectors of keys. All products are one
// function, which keeps a piece of the result in registers.

#include "attention_problem.h"
#include "vectors.h"

namespace {

#ifdef __AVX512F__
constexpr int kRows = 8;  // kRows x 2 vectors of a result stay in registers
#else
constexpr int kRows = 4;
#endif
constexpr int kQueries = 32;        // of a block
constexpr int64_t kKeys = 256;      // keys between two rescalings of the forward pass, a multiple of kPanel
constexpr float kLowest = -1e30f;  // running maximum before the first key

// Entry (i, j) at p[i * row + j * column].
struct Matrix {
    const float* p;
    int64_t row, column;
};

// C (kRows, kPanel) = or += A B over `depth`; rows of B are b_row apart, and contiguous.
template <bool ADD>
inline void multiply_piece(Matrix a, const float* b, int64_t b_row, float* c, int64_t c_row, int64_t depth) {
    Vec sums[kRows][2];
    for (int i = 0; i < kRows; i++)
        for (int j = 0; j < 2; j++) sums[i][j] = ADD ? load(c + i * c_row + j * kLanes) : Vec{};
    for (int64_t k = 0; k < depth; k++) {
        const Vec left = load(b + k * b_row), right = load(b + k * b_row + kLanes);
        const float* at = a.p + k * a.column;
        for (int i = 0; i < kRows; i++) {
            const Vec x = all(at[i * a.row]);
            sums[i][0] += x * left, sums[i][1] += x * right;
        }
    }
    for (int i = 0; i < kRows; i++)
        for (int j = 0; j < 2; j++) store(c + i * c_row + j * kLanes, sums[i][j]);
}

// C (rows, columns) = or += A B. B lies in panels of kPanel columns, b_panel apart.
template <bool ADD>
void multiply(Matrix a, const float* b, int64_t b_row, int64_t b_panel, float* c, int64_t c_row, int64_t rows,
              int64_t columns, int64_t depth) {
    for (int64_t j = 0; j < columns; j += kPanel)
        for (int64_t i = 0; i < rows; i += kRows)
            multiply_piece<ADD>({a.p + i * a.row, a.row, a.column}, b + j / kPanel * b_panel, b_row, c + i * c_row + j,
                                c_row, depth);
}

// The rotary tables of a row: D / 2 angles a token, that of dims i and i + D / 2.
struct Rotation {
    const float *cos, *sin;
};

template <int D, class T>
inline void unpack(const T* from, float factor, float* to) {
    for (int i = 0; i < D; i += kLanes) store(to + i, load(from + i) * factor);
}

// `sign` -1 is the transpose: what a gradient goes through.
template <int D, class From, class To>
inline void rotate(const From* from, Rotation r, int64_t token, float factor, float sign, To* to) {
    for (int i = 0; i < D / 2; i += kLanes) {
        const Vec cos = load(r.cos + token * (D / 2) + i) * factor, sin = load(r.sin + token * (D / 2) + i) * (factor * sign);
        const Vec x = load(from + i), y = load(from + D / 2 + i);
        store(to + i, x * cos - y * sin), store(to + D / 2 + i, y * cos + x * sin);
    }
}

template <int D, class T>
struct Task {
    const Problem& p;
    const int64_t row, kv_head, group, padded;
    const Rotation rotation;
    const int32_t* starts;

    Task(const Problem& p, int64_t index)
        : p(p), row(index / p.kv_heads), kv_head(index % p.kv_heads), group(p.heads / p.kv_heads),
          padded((p.time + kQueries - 1) / kQueries * kQueries),
          rotation{p.cos + row * p.rope_row, p.sin + row * p.rope_row},
          starts(p.starts ? p.starts + row * p.time : nullptr) {}

    static T* of(const void* base, int64_t at) { return (T*)base + at; }
    int64_t start(int64_t token) const { return starts ? starts[token] : 0; }
    int64_t first_key(int64_t query) const { return start(query) / kPanel * kPanel; }
    int64_t end_key(int64_t query) const { return (std::min(query + kQueries, p.time) + kPanel - 1) / kPanel * kPanel; }

    // All tokens of the key head: rotated keys and values as rows; rows beyond the end are zeros.
    void read(float* keys, float* values) const {
        for (int64_t t = 0; t < p.time; t++) {
            rotate<D>(of(p.qkv, p.at(row, p.key(kv_head)) + t * p.stride()), rotation, t, 1, 1, keys + t * D);
            unpack<D>(of(p.qkv, p.at(row, p.value(kv_head)) + t * p.stride()), 1, values + t * D);
        }
        std::fill(keys + p.time * D, keys + padded * D, 0.0f);
        std::fill(values + p.time * D, values + padded * D, 0.0f);
    }
    // Panels [dim][kPanel tokens] of the transpose.
    void transpose(const float* rows, float* panels) const {
        for (int64_t t = 0; t < padded; t += kPanel, panels += D * kPanel)
            for (int d = 0; d < D; d += 8)  // a few dims at a time: each line read is used at once
                for (int j = 0; j < kPanel; j++)
                    for (int i = 0; i < 8; i++) panels[(d + i) * kPanel + j] = rows[(t + j) * D + d + i];
    }
    // A block of queries, rotated; scores are then logarithms to base 2.
    void read_queries(int64_t head, int64_t query, float* to) const {
        const int64_t count = std::min<int64_t>(kQueries, p.time - query);
        for (int64_t i = 0; i < count; i++)
            rotate<D>(of(p.qkv, p.at(row, head) + (query + i) * p.stride()), rotation, query + i, p.scale * kLog2e, 1,
                      to + i * D);
        std::fill(to + count * D, to + kQueries * D, 0.0f);
    }
    // Scores of a block of queries with keys `first` .. `end`, -inf where a query may not read.
    void scores(const float* queries, const float* key_panels, int64_t query, int64_t first, int64_t end, float* s,
                int64_t s_row) const {
        multiply<false>({queries, D, 1}, key_panels + first * D, kPanel, D * kPanel, s, s_row, kQueries, end - first, D);
        for (int64_t i = 0; i < kQueries; i++) {
            const int64_t token = query + i;
            float* at = s + i * s_row;
            const int64_t from = token < p.time ? std::clamp(start(token), first, end) : end;
            const int64_t to = std::clamp(token + 1, from, end);
            std::fill(at, at + (from - first), -INFINITY);
            std::fill(at + (to - first), at + (end - first), -INFINITY);
        }
    }
    void forward() const {
        float *keys = arena.take<float>(padded * D), *values = arena.take<float>(padded * D);
        float* panels = arena.take<float>(padded * D);
        float *q = arena.take<float>(kQueries * D), *o = arena.take<float>(kQueries * D);
        float* s = arena.take<float>(kQueries * kKeys);
        read(keys, values);
        transpose(keys, panels);
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
            for (int64_t query = 0; query < p.time; query += kQueries) {
                read_queries(head, query, q);
                float top[kQueries], sum[kQueries];
                const int64_t last = end_key(query);
                for (int64_t first = first_key(query), begin = first; begin < last; begin += kKeys) {
                    const int64_t end = std::min(begin + kKeys, last), width = end - begin;
                    scores(q, panels, query, begin, end, s, kKeys);
                    for (int i = 0; i < kQueries; i++) {
                        const float shrink = soften(s + i * kKeys, width, begin == first, top[i], sum[i]);
                        for (int d = 0; begin > first && d < D; d += kLanes)
                            store(o + i * D + d, load(o + i * D + d) * shrink);
                    }
                    const auto product = begin == first ? multiply<false> : multiply<true>;
                    product({s, kKeys, 1}, values + begin * D, D, kPanel, o, D, kQueries, D, width);
                }
                const int64_t count = std::min<int64_t>(kQueries, p.time - query);
                for (int64_t i = 0; i < count; i++) {
                    T* to = of(p.out, p.out_at(row, head) + (query + i) * p.out_stride());
                    for (int d = 0; d < D; d += kLanes) store(to + d, load(o + i * D + d) * (1 / sum[i]));
                    p.lse[(row * p.heads + head) * p.time + query + i] = top[i] + std::log2(sum[i]);
                }
            }
    }
    // Turns scores into exponentials relative to the running maximum; returns what earlier ones are to be multiplied by.
    static float soften(float* s, int64_t width, bool first, float& top, float& sum) {
        Vec most = all(first ? kLowest : top), total = {};
        for (int64_t j = 0; j < width; j += kLanes) most = larger(most, load(s + j));
        const float maximum = fold(most, [](float a, float b) { return std::max(a, b); });
        for (int64_t j = 0; j < width; j += kLanes) {
            const Vec x = exp2(load(s + j) - maximum);
            store(s + j, x);
            total += x;
        }
        const float shrink = first ? 0 : std::exp2(top - maximum);
        sum = (first ? 0 : sum * shrink) + fold(total, [](float a, float b) { return a + b; });
        top = maximum;
        return shrink;
    }

    void backward() const {
        float *keys = arena.take<float>(padded * D), *values = arena.take<float>(padded * D);
        float *key_panels = arena.take<float>(padded * D), *value_panels = arena.take<float>(padded * D);
        float *grad_k = arena.take<float>(padded * D), *grad_v = arena.take<float>(padded * D);
        float *q = arena.take<float>(kQueries * D), *g = arena.take<float>(kQueries * D);
        float* grad_q = arena.take<float>(kQueries * D);
        float *s = arena.take<float>(kQueries * padded), *ds = arena.take<float>(kQueries * padded);
        read(keys, values);
        transpose(keys, key_panels), transpose(values, value_panels);
        std::fill(grad_k, grad_k + padded * D, 0.0f), std::fill(grad_v, grad_v + padded * D, 0.0f);
        for (int64_t head = kv_head * group; head < (kv_head + 1) * group; head++)
            for (int64_t query = 0; query < p.time; query += kQueries) {
                const int64_t count = std::min<int64_t>(kQueries, p.time - query);
                const int64_t first = first_key(query), width = end_key(query) - first;
                float delta[kQueries] = {};
                read_queries(head, query, q);
                for (int64_t i = 0; i < count; i++) {
                    const int64_t at = p.out_at(row, head) + (query + i) * p.out_stride();
                    unpack<D>(of(p.grad_out, at), 1, g + i * D);
                    Vec product = {};
                    for (int d = 0; d < D; d += kLanes) product += load(g + i * D + d) * load(of(p.out, at) + d);
                    delta[i] = fold(product, [](float a, float b) { return a + b; });
                }
                std::fill(g + count * D, g + kQueries * D, 0.0f);
                scores(q, key_panels, query, first, first + width, s, width);
                multiply<false>({g, D, 1}, value_panels + first * D, kPanel, D * kPanel, ds, width, kQueries, width, D);
                const float* lse = p.lse + (row * p.heads + head) * p.time + query;
                for (int64_t i = 0; i < kQueries; i++) {
                    const float shift = i < count ? lse[i] : 0;
                    for (int64_t j = i * width; j < (i + 1) * width; j += kLanes) {
                        const Vec x = exp2(load(s + j) - shift);
                        store(s + j, x), store(ds + j, x * (load(ds + j) - delta[i]));
                    }
                }
                multiply<false>({ds, width, 1}, keys + first * D, D, kPanel, grad_q, D, kQueries, D, width);
                multiply<true>({ds, 1, width}, q, D, kPanel, grad_k + first * D, D, width, D, kQueries);
                multiply<true>({s, 1, width}, g, D, kPanel, grad_v + first * D, D, width, D, kQueries);
                for (int64_t i = 0; i < count; i++)
                    rotate<D>(grad_q + i * D, rotation, query + i, p.scale, -1,
                              of(p.grad_qkv, p.at(row, head) + (query + i) * p.stride()));
            }
        for (int64_t t = 0; t < p.time; t++) {  // queries were multiplied by scale / ln 2
            rotate<D>(grad_k + t * D, rotation, t, kLn2, -1, of(p.grad_qkv, p.at(row, p.key(kv_head)) + t * p.stride()));
            T* to = of(p.grad_qkv, p.at(row, p.value(kv_head)) + t * p.stride());
            for (int d = 0; d < D; d += kLanes) store(to + d, load(grad_v + t * D + d));
        }
    }
};

template <int D, class T>
void run(const Problem& p, bool backward) {
    const int64_t padded = (p.time + kQueries - 1) / kQueries * kQueries;
    const int64_t numbers = padded * (6 * D + 2 * kQueries) + 4 * kQueries * D + kQueries * kKeys;
#pragma omp parallel for schedule(dynamic) num_threads(p.threads)
    for (int64_t i = 0; i < p.batch * p.kv_heads; i++) {
        arena.reset(numbers * sizeof(float) + 65536);
        const Task<D, T> task(p, i);
        backward ? task.backward() : task.forward();
    }
}

template <class T, int... D>
void run(const Problem& p, bool backward) {
    ((p.head_dim == D ? run<D, T>(p, backward) : void()), ...);
}

template <class T>
void run_any(const Problem& p, bool backward) {
    run<T, 32, 64, 96, 128>(p, backward);
#ifndef __AVX512F__
    run<T, 48, 80, 112>(p, backward);
#endif
}

}  // namespace

extern "C" {
int init() { return 0; }
void attention_forward(const Problem* p) { (p->wide ? run_any<float> : run_any<bf16>)(*p, false); }
void attention_backward(const Problem* p) { (p->wide ? run_any<float> : run_any<bf16>)(*p, true); }
}
