// Products of grouped rows with weights of their own (experts) for CPUs with AMX: bf16 rows, fp32 or bf16 weights.
//
//   outputs           y[t, n]      = sum over k of x[t, k] weight[n, k]
//   input gradient    grad_x[t, k] = sum over n of grad_y[t, n] weight[n, k]
//
// A library's product is compiled for the number of its rows, which changes for every expert in every step; these are
// not. Weights are rounded to bf16 while they are packed into the tile layout, so no rounded copy of them is ever kept.
// A plain C interface without torch headers. Every sum has a fixed order, whatever the number of threads.
#include <sys/syscall.h>
#include <unistd.h>

#include "tiles.h"

// Mirrored in kernels/__init__.py. Everything is row-major without gaps, inner and outer multiples of 32.
struct Problem {
    int64_t groups, inner, outer, threads;  // inner: terms of a sum; outer: columns of the result
    int64_t transposed, wide_weights;       // weight is (groups, outer, inner), not (.., inner, outer); fp32, not bf16
    const int32_t* ends;                    // (groups) end row of each group
    const bf16* rows;                       // (rows, inner)
    const void* weight;
    bf16* to;                               // (rows, outer)
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

// Writes a 32 x 32 block of sums as bf16, its first `count` rows; past the caches, which the whole result would not fit.
inline void write_block(const float* c, bf16* to, int64_t stride, int64_t count) {
    for (int64_t r = 0; r < std::min<int64_t>(count, 32); r++) {
        const float* at = c + r / 16 * 2 * kTileF + r % 16 * 16;
        _mm512_stream_si512((__m512i*)(to + r * stride), pack_bf16(_mm512_load_ps(at), _mm512_load_ps(at + kTileF)));
    }
}

// to[row, column] = sum of the row's terms times the packed columns, for rows < count <= kRows.
void multiply_rows(const Problem& p, const bf16* rows, const bf16* packed, int64_t columns, int64_t count, float* sums,
                   bf16* spare, bf16* to) {
    for (int64_t from = 0; from < p.inner; from += kInner) {
        const int64_t inner = std::min(kInner, p.inner - from);
        for (int64_t row = 0; row < count; row += 32) {
            const bf16* a = rows + row * p.inner + from;
            int64_t stride = p.inner;
            if (row + 32 > count || stride % 1024 == 0) {  // too few rows, or rows that share their cache sets
                for (int64_t r = 0; r < 32; r++)
                    for (int64_t k = 0; k < inner; k += 32)
                        _mm512_store_si512(spare + r * kInner + k, row + r < count ? load_row(a + r * stride + k)
                                                                                  : _mm512_setzero_si512());
                a = spare, stride = kInner;
            }
            for (int64_t j = 0; j < columns; j += 32) {
                float* c = sums + (row * columns + j * 32);
                multiply({a, packed + j * p.inner + from * 32, c, from ? c : nullptr, inner / 32, 16 * stride, 32,
                          kTile, 2 * kTile, 2 * kTileF, kTileF, 64, 2 * stride});
                if (from + inner == p.inner) write_block(c, to + row * p.outer + j, p.outer, count - row);
            }
        }
    }
}

template <class W>
void task(const Problem& p, int64_t group, Range rows, Range columns) {
    arena.reset(p.inner * columns.size() * 2 + kRows * columns.size() * 4 + 32 * kInner * 2 + 4096);
    bf16* packed = arena.take<bf16>(p.inner * columns.size());
    float* sums = arena.take<float>(kRows * columns.size());
    bf16* spare = arena.take<bf16>(32 * kInner);
    const W* weight = (const W*)p.weight + group * p.inner * p.outer;
    for (int64_t j = 0; j < columns.size(); j += 32)
        for (int64_t k = 0; k < p.inner; k += 32) {
            bf16* tiles = packed + j * p.inner + k * 32;
            if (p.transposed) pack_transposed(weight + (columns.begin + j) * p.inner + k, p.inner, tiles);
            else pack_pairs(weight + k * p.outer + columns.begin + j, p.outer, tiles);
        }
    for (int64_t row = rows.begin; row < rows.end; row += kRows)
        multiply_rows(p, p.rows + row * p.inner, packed, columns.size(), std::min(kRows, rows.end - row), sums, spare,
                      p.to + row * p.outer + columns.begin);
}

}  // namespace

extern "C" {

// Asks the kernel for the right to use tiles; 0 if granted.
int products_init() { return syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18) ? 1 : 0; }

void grouped_product(const Problem* problem) {
    const Problem& p = *problem;
    const int64_t pieces = (p.outer + kColumns - 1) / kColumns, whole = p.groups * pieces;
    // Tasks enough that no thread waits long for another; more would pack the same weights too often.
    const int64_t shares = std::min(2 * p.threads, (4 * p.threads + whole - 1) / whole);
#pragma omp parallel num_threads(p.threads)
    {
        TileConfig tiles;
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < p.groups * pieces * shares; i++) {
            const int64_t group = i / shares / pieces, begin = group ? p.ends[group - 1] : 0;
            Range rows = piece(p.ends[group] - begin, shares, i % shares);
            if (!rows.size()) continue;
            rows = {begin + rows.begin, begin + rows.end};
            const Range columns = piece(p.outer, pieces, i / shares % pieces);
            if (p.wide_weights) task<float>(p, group, rows, columns);
            else task<bf16>(p, group, rows, columns);
        }
        _mm_sfence();  // other threads may see the results only after this
    }
}
}
