// The weight gradient of linear layers for CPUs with AMX: bf16 in, fp32 sums out.
//
//   grad_weight[n, k] = sum over tokens t of grad_y[t, n] x[t, k]
//
// Sums that run down the rows of both factors suit no row-major library: tiles want one factor transposed and the other
// interleaved. Here the narrower factor is transposed once, for all, and the wider one interleaved piece by piece in
// cache. Several layers may share x (`parts`: queries, keys and values), and rows may be divided into groups with weights
// of their own (experts). A plain C interface without torch headers. Every sum has a fixed order, whatever the number of
// threads.

#include "tiles.h"

constexpr int kParts = 3;

// A row-major matrix of tokens x size, size a multiple of 32. Strides in entries. Mirrored in kernels/__init__.py.
struct Factor {
    const bf16* p;
    int64_t stride, size;
};

struct Problem {
    int64_t tokens, groups, parts, threads;
    const int32_t* ends;  // (groups) end row of each group; null: one group of all rows
    Factor x, grad_y[kParts];
    float* grad_weight[kParts];  // (groups, grad_y.size, x.size)
};

namespace {

constexpr int64_t kUnit = 32;         // tokens of a step
constexpr int64_t kInner = 16;        // steps between two visits to an accumulator: the left operand stays in L1
constexpr int64_t kSteps = 32;        // steps whose interleaved factor is kept in L2 ...
constexpr int64_t kSums = 160 << 10;  // ... beside so many accumulators

// 32 tokens x 32 columns as two tiles: right operand [16 token pairs][16 columns], or left operand [16 columns][32 tokens].
// Tokens from `count` on are zeros.
template <bool left>
void pack(const bf16* p, int64_t stride, int64_t count, bf16* to) {
    __m512i low[16], high[16];
    for (int i = 0; i < 16; i++) {
        const bf16* row = p + 2 * i * stride;
        __m512i even = 2 * i < count ? _mm512_loadu_si512(row) : _mm512_setzero_si512();
        __m512i odd = 2 * i + 1 < count ? _mm512_loadu_si512(row + stride) : _mm512_setzero_si512();
        interleave(even, odd, low[i], high[i]);
    }
    if (left) transpose(low), transpose(high);
    store_tile(to, low), store_tile(to + kTile, high);
}

struct Group {
    int64_t begin, count, steps, first_step;  // first_step: steps of all groups before
};

Group find_group(const Problem& p, int64_t index) {
    Group g{0, p.ends ? 0 : p.tokens, 0, 0};
    for (int64_t i = 0, from = 0; p.ends && i <= index; from = p.ends[i++]) {
        g.first_step += (g.count + kUnit - 1) / kUnit;
        g.begin = from, g.count = p.ends[i] - from;
    }
    g.steps = (g.count + kUnit - 1) / kUnit;
    return g;
}

// Columns of the wider factor that one task takes.
int64_t task_columns(const Problem& p, int64_t narrow, int64_t wide) {
    const int64_t most = std::max<int64_t>(32, kSums / narrow / 32 * 32);
    const int64_t share = std::max<int64_t>(64, wide / (p.groups > p.threads ? 1 : p.threads) / 32 * 32);
    const int64_t pieces = (wide + std::min(most, share) - 1) / std::min(most, share);
    return (wide / 32 + pieces - 1) / pieces * 32;
}

// Sums of the group's products of the narrow factor, packed as `left`, with columns [from, to) of the wide one.
void sum_products(const Group& g, const bf16* left, int64_t narrow, const Factor& wide, int64_t from, int64_t to,
                  bf16* right, float* sums) {
    const int64_t columns = to - from;
    for (int64_t chunk = 0; chunk < g.steps; chunk += kSteps) {
        const int64_t steps = std::min(kSteps, g.steps - chunk);
        for (int64_t i = 0; i < steps; i++) {
            const int64_t token = (chunk + i) * kUnit;
            for (int64_t j = 0; j < columns; j += 32)
                pack<false>(wide.p + (g.begin + token) * wide.stride + from + j, wide.stride, g.count - token,
                            right + (j * steps + i * 32) * 32);
        }
        for (int64_t r = 0; r < narrow; r += 32)
            for (int64_t i = 0; i < steps; i += kInner) {
                const bf16* a = left + (r * g.steps + (chunk + i) * 32) * 32;
                for (int64_t j = 0; j < columns; j += 32) {
                    float* c = sums + (r * columns + j * 32);
                    multiply({a, right + (j * steps + i * 32) * 32, c, chunk + i ? c : nullptr,
                              std::min(kInner, steps - i), kTile, 2 * kTile, kTile, 2 * kTile, 2 * kTileF, kTileF, 64});
                }
            }
    }
}

// One tile of sums [r][j] to entry (r, j) of a matrix, or to (j, r) if `turned`. Written past the caches: gradients are
// read again when the whole model's are there.
void write_tile(const float* tile, bool turned, float* to, int64_t stride) {
    __m512i a[16];
    for (int i = 0; i < 16; i++) a[i] = _mm512_load_si512(tile + i * 16);
    if (turned) transpose(a);
    for (int i = 0; i < 16; i++) _mm512_stream_si512((__m512i*)(to + i * stride), a[i]);
}

void write_sums(const float* sums, int64_t narrow, int64_t columns, bool turned, float* to, int64_t stride) {
    for (int64_t r = 0; r < narrow; r += 16)
        for (int64_t j = 0; j < columns; j += 16) {
            const float* tile = sums + (r / 32 * 32 * columns + j / 32 * 1024) + (r / 16 % 2 * 2 + j / 16 % 2) * kTileF;
            write_tile(tile, turned, turned ? to + j * stride + r : to + r * stride + j, stride);
        }
}

void task(const Problem& p, const bf16* lefts, bool x_is_narrow, int part, int64_t index, int64_t from, int64_t to) {
    const Group g = find_group(p, index);
    const Factor &y = p.grad_y[part], &wide = x_is_narrow ? y : p.x;
    const int64_t narrow = x_is_narrow ? p.x.size : y.size, columns = to - from;
    float* grad = p.grad_weight[part] + index * y.size * p.x.size + (x_is_narrow ? from * p.x.size : from);
    if (!g.count) {
        for (int64_t n = 0; n < (x_is_narrow ? columns : narrow); n++)
            std::fill_n(grad + n * p.x.size, x_is_narrow ? narrow : columns, 0.f);
        return;
    }
    arena.reset(kSteps * kUnit * columns * 2 + narrow * columns * 4 + 4096);
    bf16* right = arena.take<bf16>(kSteps * kUnit * columns);
    float* sums = arena.take<float>(narrow * columns);
    sum_products(g, lefts + g.first_step * kUnit * narrow, narrow, wide, from, to, right, sums);
    write_sums(sums, narrow, columns, x_is_narrow, grad, p.x.size);
}

}  // namespace

extern "C" {

void weight_gradient(const Problem* problem) {
    static thread_local Arena packed;
    const Problem& p = *problem;
    const bool x_is_narrow = p.parts > 1 || p.x.size <= p.grad_y[0].size;
    const Factor& narrow = x_is_narrow ? p.x : p.grad_y[0];
    const Group last = find_group(p, p.groups - 1);
    const int64_t entries = (last.first_step + last.steps) * kUnit * narrow.size;
    packed.reset(entries * 2 + 4096);
    bf16* lefts = packed.take<bf16>(entries);
    int64_t total = 0, tasks[kParts], columns[kParts];
    for (int i = 0; i < p.parts; i++) {
        const int64_t wide = x_is_narrow ? p.grad_y[i].size : p.x.size;
        columns[i] = task_columns(p, narrow.size, wide);
        total += tasks[i] = p.groups * ((wide + columns[i] - 1) / columns[i]);
    }
#pragma omp parallel num_threads(p.threads)
    {
        TileConfig tiles;
        for (int64_t index = 0; index < p.groups; index++) {
            const Group g = find_group(p, index);
#pragma omp for schedule(static) nowait
            for (int64_t i = 0; i < g.steps; i++) {
                const bf16* from = narrow.p + (g.begin + i * kUnit) * narrow.stride;
                for (int64_t r = 0; r < narrow.size; r += 32)
                    pack<true>(from + r, narrow.stride, g.count - i * kUnit,
                               lefts + g.first_step * kUnit * narrow.size + (r * g.steps + i * 32) * 32);
            }
        }
#pragma omp barrier
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < total; i++) {
            int64_t part = 0, rest = i;
            while (rest >= tasks[part]) rest -= tasks[part++];
            const int64_t pieces = tasks[part] / p.groups, from = rest % pieces * columns[part];
            const int64_t wide = x_is_narrow ? p.grad_y[part].size : p.x.size;
            task(p, lefts, x_is_narrow, part, rest / pieces, from, std::min(wide, from + columns[part]));
        }
        _mm_sfence();  // other threads may see the results only after this
    }
}
}
