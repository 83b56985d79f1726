// Products of grouped rows with weights of their own (experts; a dense layer is one group) for CPUs with AMX, and the gate
// of SwiGLU while a block of sums is still in cache. bf16 rows, fp32 or bf16 weights.
//
//   outputs           y[t, n]      = sum over k of x[t, k] weight[n, k]
//   input gradient    grad_x[t, k] = sum over n of grad_y[t, n] weight[n, k]
//   gated outputs     h[t, n]      = silu(gate[t, n]) up[t, n] scale[t], gate and up being outputs
//   gated gradients   of gate, up and scale, and h again, from h's gradient, which is an input gradient
//
// A library's product is compiled for the number of its rows, which changes for every expert in every step; these are
// not. Weights are rounded to bf16 while they are packed into the tile layout, so no rounded copy of them is ever kept.
// A plain C interface without torch headers. Every sum has a fixed order, whatever the number of threads.
#include <vector>

#include "tiles.h"

// Mirrored in kernels/__init__.py. Everything is row-major without gaps, inner and outer multiples of 32.
struct Problem {
    int64_t groups, inner, outer, threads;  // inner: terms of a sum; outer: columns of the result
    int64_t transposed, wide_weights;       // weight is (groups, outer, inner), not (.., inner, outer); fp32, not bf16
    int64_t group_stride;                   // entries from one group's weight to the next one's
    const int32_t* ends;                    // (groups) end row of each group
    const bf16* rows;                       // (rows, inner)
    const void *weight, *up_weight;         // up_weight: gated outputs only, weight being the gate's
    bf16* to;                               // (rows, outer); not for the gated ones
    const float* scale;                     // (rows), or null
    bf16 *gate_up, *h, *grad_gate_up;       // gate and up side by side: (rows, 2 * outer); h (rows, outer)
    float* grad_scale;                      // (outer / 32, rows): parts of its sum, one for every 32 columns
};

namespace {

constexpr int64_t kInner = 512;    // terms of a sum between two visits to its accumulator: their rows fit in L1
constexpr int64_t kColumns = 512;  // columns of packed weights that a task keeps in L2
constexpr int64_t kRows = 128;     // rows whose accumulators stay in L2 while a long sum goes on

inline __m512i load_row(const bf16* p) { return _mm512_loadu_si512(p); }
inline __m512i load_row(const float* p) { return pack_bf16(_mm512_loadu_ps(p), _mm512_loadu_ps(p + 16)); }

// A 32 x 32 piece as right operand, sums running along its columns: tiles [16 column pairs][16 rows], by rows.
template <class W>
void pack_transposed(const W* p, int64_t stride, bf16* to) {
    for (int half = 0; half < 2; half++) {
        __m512i a[16];
        for (int i = 0; i < 16; i++) a[i] = load_row(p + (half * 16 + i) * stride);
        transpose(a);
        store_tile(to + half * kTile, a);
    }
}

// The same, sums running along its rows: tiles [16 row pairs][16 columns], by columns.
template <class W>
void pack_pairs(const W* p, int64_t stride, bf16* to) {
    __m512i low[16], high[16];
    for (int i = 0; i < 16; i++) interleave(load_row(p + 2 * i * stride), load_row(p + (2 * i + 1) * stride), low[i], high[i]);
    store_tile(to, low), store_tile(to + kTile, high);
}

struct Range {
    int64_t begin, end;
    int64_t size() const { return end - begin; }
};

// The index-th of `count` even pieces of n, in units of 32.
Range piece(int64_t n, int64_t count, int64_t index) {
    const int64_t units = (n + 31) / 32;
    return {std::min(n, units * index / count * 32), std::min(n, units * (index + 1) / count * 32)};
}

// A block of 32 x 32 sums: rows of 16 in four tiles.
struct Sums {
    const float* p;
    __m512 low(int64_t row) const { return _mm512_load_ps(p + row / 16 * 2 * kTileF + row % 16 * 16); }
    __m512 high(int64_t row) const { return _mm512_load_ps(p + (row / 16 * 2 + 1) * kTileF + row % 16 * 16); }
    __m512i rounded(int64_t row) const { return pack_bf16(low(row), high(row)); }
};

inline __m512 widen(__m512i x, int half) {
    const __m256i part = half ? _mm512_extracti64x4_epi64(x, 1) : _mm512_castsi512_si256(x);
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(part), 16);
}
inline __m512 sigmoid(__m512 x) {
    const __m512 one = _mm512_set1_ps(1), e = exp2_ps(_mm512_mul_ps(x, _mm512_set1_ps(-1.4426950408889634f)));
    return _mm512_div_ps(one, _mm512_add_ps(one, e));
}

// What becomes of row r of a block of sums: entries of row `row`, columns from `column`. Written past the caches, which the
// whole result would not fit.
struct Plain {
    static constexpr int weights = 1;
    static void write(const Problem& p, Sums sums, int64_t r, int64_t row, int64_t column) {
        _mm512_stream_si512((__m512i*)(p.to + row * p.outer + column), sums.rounded(r));
    }
};

struct Gated {
    static constexpr int weights = 2;  // the sums of gate and up are neighbours
    static void write(const Problem& p, Sums sums, int64_t r, int64_t row, int64_t column) {
        const Sums raised{sums.p + 4 * kTileF};
        const __m512i gate = sums.rounded(r), up = raised.rounded(r);
        const __m512 scale = _mm512_set1_ps(p.scale ? p.scale[row] : 1);
        __m512 h[2];
        for (int half = 0; half < 2; half++) {
            const __m512 x = widen(gate, half);
            h[half] = _mm512_mul_ps(_mm512_mul_ps(_mm512_mul_ps(x, sigmoid(x)), widen(up, half)), scale);
        }
        bf16* to = p.gate_up + row * 2 * p.outer + column;
        _mm512_stream_si512((__m512i*)to, gate), _mm512_stream_si512((__m512i*)(to + p.outer), up);
        _mm512_stream_si512((__m512i*)(p.h + row * p.outer + column), pack_bf16(h[0], h[1]));
    }
};

struct GatedGradients {
    static constexpr int weights = 1;
    static void write(const Problem& p, Sums sums, int64_t r, int64_t row, int64_t column) {
        const int64_t rows = p.ends[p.groups - 1];
        const bf16* at = p.gate_up + row * 2 * p.outer + column;
        const __m512i gate = _mm512_loadu_si512(at), up = _mm512_loadu_si512(at + p.outer);
        const __m512 scale = _mm512_set1_ps(p.scale ? p.scale[row] : 1);
        __m512 h[2], grad_gate[2], grad_up[2], along = _mm512_setzero_ps();
        for (int half = 0; half < 2; half++) {
            const __m512 x = widen(gate, half), u = widen(up, half), s = sigmoid(x), silu = _mm512_mul_ps(x, s);
            const __m512 grad = half ? sums.high(r) : sums.low(r), scaled = _mm512_mul_ps(grad, scale);
            const __m512 unscaled = _mm512_mul_ps(silu, u);
            along = _mm512_fmadd_ps(grad, unscaled, along);
            h[half] = _mm512_mul_ps(unscaled, scale);
            grad_up[half] = _mm512_mul_ps(scaled, silu);
            // silu' = s + silu (1 - s)
            const __m512 slope = _mm512_add_ps(s, _mm512_fnmadd_ps(silu, s, silu));
            grad_gate[half] = _mm512_mul_ps(_mm512_mul_ps(scaled, u), slope);
        }
        bf16* to = p.grad_gate_up + row * 2 * p.outer + column;
        _mm512_stream_si512((__m512i*)to, pack_bf16(grad_gate[0], grad_gate[1]));
        _mm512_stream_si512((__m512i*)(to + p.outer), pack_bf16(grad_up[0], grad_up[1]));
        _mm512_stream_si512((__m512i*)(p.h + row * p.outer + column), pack_bf16(h[0], h[1]));
        if (p.scale) p.grad_scale[column / 32 * rows + row] = _mm512_reduce_add_ps(along);
    }
};

// A block whose sums are done, written while the next ones are computed.
template <class End>
class Pending {
    const Problem& p_;
    Sums sums_{};
    int64_t row_ = 0, count_ = 0, column_ = 0, done_ = 0;

  public:
    explicit Pending(const Problem& p) : p_(p) {}
    ~Pending() { write(32); }
    void write(int64_t rows) {
        for (const int64_t to = std::min(count_, done_ + rows); done_ < to; done_++)
            End::write(p_, sums_, done_, row_ + done_, column_);
    }
    void replace(Sums sums, int64_t row, int64_t count, int64_t column) {
        write(32);
        sums_ = sums, row_ = row, count_ = std::min<int64_t>(32, count), column_ = column, done_ = 0;
    }
};

// Rows [first, first + count) times the packed columns, those of `End::weights` matrices in turn; count <= kRows.
template <class End>
void multiply_rows(const Problem& p, int64_t first, int64_t count, const bf16* packed, Range columns, float* sums, bf16* spare) {
    const int64_t width = columns.size() * End::weights;
    Pending<End> pending(p);
    int64_t turn = 0;
    for (int64_t from = 0; from < p.inner; from += kInner) {
        const int64_t inner = std::min(kInner, p.inner - from), steps = inner / 32 * End::weights;
        const int64_t share = (32 + steps - 1) / steps;
        for (int64_t row = 0; row < count; row += 32) {
            const bf16* a = p.rows + (first + row) * p.inner + from;
            int64_t stride = p.inner;
            if (row + 32 > count || stride % 1024 == 0) {  // too few rows, or rows that share their cache sets
                for (int64_t r = 0; r < 32; r++)
                    for (int64_t k = 0; k < inner; k += 32)
                        _mm512_store_si512(spare + r * kInner + k, row + r < count ? load_row(a + r * stride + k)
                                                                                  : _mm512_setzero_si512());
                a = spare, stride = kInner;
            }
            for (int64_t j = 0; j < width; j += 32) {
                const int64_t block = j / 32 / End::weights, part = j / 32 % End::weights;
                // A short sum needs no accumulator but the one at hand and the one that is being written.
                const int64_t place = inner < p.inner ? row / 32 * (width / 32) + j / 32 : turn % 2 * End::weights + part;
                float* c = sums + place * 1024;
                multiply({a, packed + j * p.inner + from * 32, c, from ? c : nullptr, inner / 32, 16 * stride, 32,
                          kTile, 2 * kTile, 2 * kTileF, kTileF, 64, 2 * stride}, [&] { pending.write(share); });
                if (from + inner < p.inner || part < End::weights - 1) continue;
                pending.replace({c - part * 1024}, first + row, count - row, columns.begin + block * 32);
                turn++;
            }
        }
    }
}

struct Task {
    int64_t group;
    Range rows, columns;
};

template <class W, class End>
void multiply_task(const Problem& p, const Task& task) {
    const Range rows = task.rows, columns = task.columns;
    const int64_t width = columns.size() * End::weights;
    arena.reset(p.inner * width * 2 + kRows * width * 4 + 32 * kInner * 2 + 4096);
    bf16* packed = arena.take<bf16>(p.inner * width);
    float* sums = arena.take<float>(kRows * width);
    bf16* spare = arena.take<bf16>(32 * kInner);
    for (int64_t j = 0; j < width; j += 32) {
        const int64_t column = columns.begin + j / 32 / End::weights * 32;
        const W* weight = (const W*)(j / 32 % End::weights ? p.up_weight : p.weight) + task.group * p.group_stride;
        for (int64_t k = 0; k < p.inner; k += 32) {
            bf16* tiles = packed + j * p.inner + k * 32;
            if (p.transposed) pack_transposed(weight + column * p.inner + k, p.inner, tiles);
            else pack_pairs(weight + k * p.outer + column, p.outer, tiles);
        }
    }
    for (int64_t row = rows.begin; row < rows.end; row += kRows)
        multiply_rows<End>(p, row, std::min(kRows, rows.end - row), packed, columns, sums, spare);
}

// Tasks enough that no thread waits long for another; more would pack the same weights too often.
template <class End>
std::vector<Task> divide(const Problem& p) {
    std::vector<Task> tasks;
    const int64_t pieces = (p.outer * End::weights + kColumns - 1) / kColumns, all = p.ends[p.groups - 1] * pieces;
    for (int64_t group = 0, begin = 0; group < p.groups; begin = p.ends[group++]) {
        const int64_t count = p.ends[group] - begin;
        const int64_t shares = count ? std::min(2 * p.threads, (4 * p.threads * count + all - 1) / all) : 0;
        for (int64_t i = 0; i < pieces * shares; i++) {
            const Range rows = piece(count, shares, i % shares);
            if (rows.size()) tasks.push_back({group, {begin + rows.begin, begin + rows.end}, piece(p.outer, pieces, i / shares)});
        }
    }
    return tasks;
}

template <class End>
void run(const Problem& p) {
    const std::vector<Task> tasks = divide<End>(p);
#pragma omp parallel num_threads(p.threads)
    {
        TileConfig tiles;
#pragma omp for schedule(dynamic)
        for (size_t i = 0; i < tasks.size(); i++) {
            if (p.wide_weights) multiply_task<float, End>(p, tasks[i]);
            else multiply_task<bf16, End>(p, tasks[i]);
        }
        _mm_sfence();  // other threads may see the results only after this
    }
}

}  // namespace

extern "C" {
void product(const Problem* p) { run<Plain>(*p); }
void gated_product(const Problem* p) { run<Gated>(*p); }
void gated_gradients(const Problem* p) { run<GatedGradients>(*p); }
}
