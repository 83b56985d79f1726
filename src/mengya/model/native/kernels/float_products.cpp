// Matrix products in float32 for CPUs that PyTorch's library was not made for: on processors that are not Intel's it
// reaches two thirds of what their vectors can do. And the gate of SwiGLU, while a block of its input is still in cache.
//
//   product          C = alpha A B + beta C      A (rows, depth), B (depth, columns), each with any two strides; of a
//                    result that is known to be symmetric, the upper half is a copy of the lower
//   gated product    C = A B, gate and up side by side; h = silu(gate) up
//   gated gradients  of gate and up, and h again, from h's gradient A B
//
// Goto and van de Geijn 2008 (doi:10.1145/1356052.1356053): B lies in panels of kPanel columns, which all threads share;
// a thread keeps a block of A in its second-level cache, in panels of kRows rows, and a piece of C in registers. Every
// sum has one order, whatever the number of threads.
#include "vectors.h"

// Mirrored in kernels/__init__.py.
struct Side {
    const float* p;
    int64_t row, column;  // strides
};
struct Problem {
    int64_t rows, columns, depth, threads, symmetric;
    Side a, b;
    float* c;
    int64_t c_row;
    float alpha, beta;
    const float* gate_up;  // gated gradients only: (rows, 2 * columns), as is c then
    float* h;              // gated ones only: (rows, half the width of c)
};

namespace {

#ifdef __AVX512F__
constexpr int kRows = 12;  // kRows x 2 vectors of a result stay in registers
#else
constexpr int kRows = 6;
#endif
constexpr int64_t kDepth = 256;       // of a panel: 16 KB of B stay in the first cache, a block of A in the second
constexpr int64_t kBlock = 192;       // rows of A, a multiple of kRows
constexpr int64_t kShared = 1 << 21;  // numbers of B that are packed at a time
constexpr int64_t kGroup = 4 * kPanel;

using Sums = Vec[kRows][2];

inline void multiply(const float* a, const float* b, int64_t depth, Sums& sums) {
    for (auto& row : sums) row[0] = row[1] = Vec{};
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; k++) {
        const Vec left = load(b + k * kPanel), right = load(b + k * kPanel + kLanes);
#pragma GCC unroll 12
        for (int i = 0; i < kRows; i++) {
            const Vec x = all(a[k * kRows + i]);
            sums[i][0] += x * left, sums[i][1] += x * right;
        }
    }
}

// With beta 0 what stood there is not read: it may be NaN.
inline void write(const Sums& sums, float* c, int64_t c_row, float alpha, float beta, int64_t rows, int64_t columns) {
    float spare[kPanel] = {};
    for (int64_t i = 0; i < rows; i++, c += c_row) {
        float* at = columns == kPanel ? c : spare;
        if (at == spare && beta != 0) std::copy(c, c + columns, spare);
        for (int j = 0; j < 2; j++) {
            const Vec sum = sums[i][j] * alpha;
            store(at + j * kLanes, beta == 0 ? sum : sum + load(at + j * kLanes) * beta);
        }
        if (at == spare) std::copy(spare, spare + columns, c);
    }
}

// Panels of W: to[panel][k][i] = p[(panel * W + i) * outer + k * inner]; the last one is filled up with zeros.
template <int W>
void pack(const float* p, int64_t outer, int64_t inner, int64_t count, int64_t depth, float* to) {
    int64_t i = 0;
    for (; i + W <= count; i += W, to += W * depth)
        for (int64_t k = 0; k < depth; k++) {
            if (outer == 1) std::memcpy(to + k * W, p + k * inner + i, W * sizeof(float));
            else
                for (int j = 0; j < W; j++) to[k * W + j] = p[(i + j) * outer + k * inner];
        }
    for (int64_t k = 0; i < count && k < depth; k++)
        for (int64_t j = 0; j < W; j++) to[k * W + j] = i + j < count ? p[(i + j) * outer + k * inner] : 0;
}

inline Vec sigmoid(Vec x) { return 1 / (1 + exp2(smaller(x * -kLog2e, all(126.0f)))); }

// What becomes of rows that are done.
struct Plain {
    static void end(const Problem&, int64_t, int64_t) {}
};

// Calls visit(i) for vectors of a row's entries; `visit` works on `count` of them.
template <class Visit>
inline void each(int64_t size, Visit visit) {
    for (int64_t i = 0; i < size; i += kLanes) visit(i, std::min<int64_t>(kLanes, size - i));
}
inline Vec load(const float* p, int64_t count) {
    if (count == kLanes) return load(p);
    float spare[kLanes] = {};
    std::copy(p, p + count, spare);
    return load(spare);
}
inline void store(float* p, Vec x, int64_t count) {
    if (count == kLanes) return store(p, x);
    float spare[kLanes];
    store(spare, x);
    std::copy(spare, spare + count, p);
}

struct Gated {
    static void end(const Problem& p, int64_t first, int64_t rows) {
        const int64_t inner = p.columns / 2;
        for (int64_t row = first; row < first + rows; row++)
            each(inner, [&](int64_t i, int64_t count) {
                const float* at = p.c + row * p.c_row + i;
                const Vec gate = load(at, count);
                store(p.h + row * inner + i, gate * sigmoid(gate) * load(at + inner, count), count);
            });
    }
};

struct GatedGradients {  // h's gradient stands where the gate's is written
    static void end(const Problem& p, int64_t first, int64_t rows) {
        const int64_t inner = p.columns;
        for (int64_t row = first; row < first + rows; row++)
            each(inner, [&](int64_t i, int64_t count) {
                const float* at = p.gate_up + row * 2 * inner + i;
                float* to = p.c + row * p.c_row + i;
                const Vec gate = load(at, count), up = load(at + inner, count), grad = load(to, count);
                const Vec s = sigmoid(gate), silu = gate * s;
                store(p.h + row * inner + i, silu * up, count);
                store(to, grad * up * (s + silu * (1 - s)), count);
                store(to + inner, grad * silu, count);
            });
    }
};

inline int64_t units(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

thread_local Arena shared;

template <class End>
void run(const Problem& p) {
    const int64_t wide = units(p.columns, kPanel) * kPanel;
    const int64_t deep = std::min(p.depth, std::max(kDepth, kShared / wide / kDepth * kDepth));
    const int64_t blocks = units(units(p.rows, kBlock), p.threads) * p.threads;
    // Of a symmetric result the last rows take longest: smaller blocks are divided more evenly.
    const int64_t block = p.symmetric ? 8 * kRows : units(units(p.rows, blocks), kRows) * kRows;
    shared.reset(deep * wide * sizeof(float) + 4096);
    float* const b = shared.take<float>(deep * wide);
#pragma omp parallel num_threads(p.threads)
    {
        arena.reset(block * kDepth * sizeof(float) + 4096);
        float* const a = arena.take<float>(block * kDepth);
        for (int64_t from = 0; from < p.depth; from += deep) {
            const int64_t end = std::min(from + deep, p.depth);
#pragma omp for schedule(static)
            for (int64_t j = 0; j < p.columns; j += kGroup)
                for (int64_t k = from; k < end; k += kDepth) {
                    const int64_t depth = std::min(kDepth, end - k), columns = std::min(kGroup, p.columns - j);
                    pack<kPanel>(p.b.p + k * p.b.row + j * p.b.column, p.b.column, p.b.row, columns, depth,
                                 b + (k - from) * wide + j * depth);
                }
#pragma omp for schedule(dynamic)
            for (int64_t row = 0; row < p.rows; row += block) {
                const int64_t rows = std::min(block, p.rows - row);
                for (int64_t k = from; k < end; k += kDepth) {
                    const int64_t depth = std::min(kDepth, end - k);
                    pack<kRows>(p.a.p + row * p.a.row + k * p.a.column, p.a.row, p.a.column, rows, depth, a);
                    for (int64_t j = 0; j < (p.symmetric ? row + rows : p.columns); j += kPanel)
                        for (int64_t i = 0; i < rows; i += kRows) {
                            Sums sums;
                            multiply(a + i * depth, b + (k - from) * wide + j * depth, depth, sums);
                            write(sums, p.c + (row + i) * p.c_row + j, p.c_row, p.alpha, k ? 1 : p.beta,
                                  std::min<int64_t>(kRows, rows - i), std::min<int64_t>(kPanel, p.columns - j));
                        }
                }
                if (end == p.depth) End::end(p, row, rows);
            }
        }
#pragma omp for schedule(dynamic)
        for (int64_t row = 0; row < (p.symmetric ? p.rows : 0); row += block)
            for (int64_t j = row; j < p.columns; j++)
                for (int64_t i = row; i < std::min(row + block, j); i++) p.c[i * p.c_row + j] = p.c[j * p.c_row + i];
    }
}

}  // namespace

extern "C" {
int init() { return 0; }
void product(const Problem* p) { run<Plain>(*p); }
void gated_product(const Problem* p) { run<Gated>(*p); }
void gated_gradients(const Problem* p) { run<GatedGradients>(*p); }
}
