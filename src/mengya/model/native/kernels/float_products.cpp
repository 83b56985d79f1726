// Matrix products in float32 for CPUs whose library was not made for them: on processors that are not Intel's, the product
// that PyTorch calls reaches two thirds of what the vector units can do, and much less of it with few columns.
//
//   C = alpha A B + beta C      A (rows, depth), B (depth, columns): each with two strides, of which one is 1
//
// Goto and van de Geijn 2008 (doi:10.1145/1356052.1356053): B lies in panels of kPanel columns, which all threads share; a
// thread keeps a block of A in its second-level cache, in panels of kRows rows, and a piece of C in registers. Every sum
// has one order, whatever the number of threads.
#include "vectors.h"

// Mirrored in kernels/__init__.py.
struct Side {
    const float* p;
    int64_t row, column;  // strides
};
struct Problem {
    int64_t rows, columns, depth, threads;
    Side a, b;
    float* c;
    int64_t c_row;
    float alpha, beta;
};

namespace {

#ifdef __AVX512F__
constexpr int kRows = 12;  // kRows x 2 vectors of a result stay in registers
#else
constexpr int kRows = 6;
#endif
constexpr int64_t kDepth = 256;   // of a panel: 16 KB of B stay in the first cache, a block of A in the second
constexpr int64_t kBlock = 192;   // rows of A, a multiple of kRows
constexpr int64_t kShared = 1 << 21;  // numbers of B that are packed at a time

// C = or += the product of two panels.
inline void multiply(const float* a, const float* b, int64_t depth, Vec (&sums)[kRows][2]) {
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

// beta 0: what stood there is not read, it may be NaN.
inline void write(const Vec (&sums)[kRows][2], float* c, int64_t c_row, float alpha, float beta, int64_t rows, int64_t columns) {
    float spare[kPanel];
    for (int64_t i = 0; i < rows; i++) {
        float* to = c + i * c_row;
        const bool whole = columns == kPanel;
        if (!whole && beta != 0) std::copy(to, to + columns, spare);
        float* at = whole ? to : spare;
        for (int j = 0; j < 2; j++) {
            const Vec sum = sums[i][j] * alpha;
            store(at + j * kLanes, beta == 0 ? sum : sum + load(at + j * kLanes) * beta);
        }
        if (!whole) std::copy(spare, spare + columns, to);
    }
}

// Panels of W: to[panel][k][i] = p[(panel W + i) outer + k inner]; the last one is filled up with zeros.
template <int W>
void pack(const float* p, int64_t outer, int64_t inner, int64_t count, int64_t depth, float* to) {
    const int64_t whole = count / W * W;
    if (outer == 1)
        for (int64_t i = 0; i < whole; i += W)
            for (int64_t k = 0; k < depth; k++) std::memcpy(to + i * depth + k * W, p + k * inner + i, W * sizeof(float));
    else
        for (int64_t i = 0; i < whole; i += W)
            for (int64_t k = 0; k < depth; k++)
                for (int j = 0; j < W; j++) to[i * depth + k * W + j] = p[(i + j) * outer + k * inner];
    if (whole == count) return;
    for (int64_t k = 0; k < depth; k++)
        for (int64_t j = 0; j < W; j++) to[whole * depth + k * W + j] = whole + j < count ? p[(whole + j) * outer + k * inner] : 0;
}

int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

thread_local Arena shared;

}  // namespace

extern "C" {
int init() { return 0; }
void product(const Problem* problem) {
    const Problem& p = *problem;
    const int64_t wide = up(p.columns, kPanel), deep = std::min(p.depth, std::max(kDepth, kShared / wide / kDepth * kDepth));
    const int64_t blocks = up((p.rows + kBlock - 1) / kBlock, p.threads), block = up((p.rows + blocks - 1) / blocks, kRows);
    shared.reset(deep * wide * sizeof(float) + 4096);
    float* const b = shared.take<float>(deep * wide);
#pragma omp parallel num_threads(p.threads)
    {
        arena.reset(block * kDepth * sizeof(float) + 4096);
        float* const a = arena.take<float>(block * kDepth);
        for (int64_t from = 0; from < p.depth; from += deep) {
            const int64_t end = std::min(from + deep, p.depth);
#pragma omp for schedule(static)
            for (int64_t j = 0; j < p.columns; j += 4 * kPanel)
                for (int64_t k = from; k < end; k += kDepth)
                    pack<kPanel>(p.b.p + k * p.b.row + j * p.b.column, p.b.column, p.b.row, std::min<int64_t>(4 * kPanel, p.columns - j),
                                 std::min(kDepth, end - k), b + (k - from) * wide + j * std::min(kDepth, end - k));
#pragma omp for schedule(dynamic)
            for (int64_t row = 0; row < p.rows; row += block) {
                const int64_t rows = std::min(block, p.rows - row);
                for (int64_t k = from; k < end; k += kDepth) {
                    const int64_t depth = std::min(kDepth, end - k);
                    const float beta = k ? 1 : p.beta;
                    pack<kRows>(p.a.p + row * p.a.row + k * p.a.column, p.a.row, p.a.column, rows, depth, a);
                    for (int64_t j = 0; j < p.columns; j += kPanel)
                        for (int64_t i = 0; i < rows; i += kRows) {
                            Vec sums[kRows][2];
                            multiply(a + i * depth, b + (k - from) * wide + j * depth, depth, sums);
                            write(sums, p.c + (row + i) * p.c_row + j, p.c_row, p.alpha, beta, std::min<int64_t>(kRows, rows - i),
                                  std::min<int64_t>(kPanel, p.columns - j));
                        }
                }
            }
        }
    }
}
}
