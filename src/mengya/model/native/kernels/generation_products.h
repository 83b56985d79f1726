// Products of generation: rows of activations times a matrix that is used again and again.
//
// Weights lie in panels of kPanel outputs, input after input, so that a product reads them once, front to back, and adds
// up vectors of outputs. A row is computed by the same operations in the same order, however many rows there are.
#pragma once
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace {

#ifdef __AVX512F__
constexpr int kRows = 12;  // kRows x 2 vectors of a result stay in registers
#else
constexpr int kRows = 6;
#endif
constexpr int kPartsToWiden = 2;  // a panel that is read more often is taken apart once
constexpr int kAhead = 2048;  // bytes that are fetched before they are needed

// What the weights are, and what they meet: bf16 meets activations in float32, or, where the processor multiplies it,
// activations rounded to bf16; int8 (a scale for each output) meets activations in whole numbers.
enum Kind : int64_t { kFloat, kBfloat, kBfloatPairs, kInt8 };

// (outputs, depth), in panels.
struct Matrix {
    const void* weight;
    const float* scale;  // of each output; null unless int8
    const float* bias;   // or null
    int64_t outputs, depth, kind;

    int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
    int64_t width() const { return panels() * kPanel; }
};

struct Range {
    int64_t begin, end;
};
inline Range share(int64_t count, int64_t thread, int64_t threads) {
    return {count * thread / threads, count * (thread + 1) / threads};
}

// ---- kinds ----------------------------------------------------------------------------------------------------------
// Of each: Entry, what lies in memory for one output and kInputs inputs; Weights, that of a vector of outputs in
// registers; Input, what it meets of a row, if need be made of floats by `meet`; Total, sums of a vector of outputs.

// Calls visit(k, x[k …], count) for a row, a vector at a time; the last one may have fewer entries, the rest of it is 0.
template <class Visit>
inline void each(const float* x, int64_t depth, Visit visit) {
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) visit(k, load(x + k), kLanes);
    if (k == depth) return;
    float rest[kLanes] = {};
    std::copy(x + k, x + depth, rest);
    visit(k, load(rest), depth - k);
}

struct Floats {
    using Entry = float;
    using Input = float;
    using Weights = Vec;
    using Total = Vec;
    static constexpr int kInputs = 1;
    static Weights read(const Entry* p) { return load(p); }
    static Total add(Total total, Input x, Weights w) { return total + all(x) * w; }
};
struct Bfloats {
    using Entry = uint32_t;
    struct Input {
        float first, second;
    };
    struct Weights {
        Vec first, second;
    };
    using Total = Vec;
    static constexpr int kInputs = 2;
    static Weights read(const Entry* p) {
        Bits both;
        std::memcpy(&both, p, sizeof both);
        return {(Vec)(both << 16), (Vec)(both & 0xffff0000u)};
    }
    static Total add(Total total, Input x, Weights w) {
        total += all(x.first) * w.first;
        return total + all(x.second) * w.second;
    }
};
#ifdef __AVX512BF16__
constexpr bool kPairs = true;  // bf16 is multiplied in pairs, also that of keys and values
struct BfloatPairs {
    using Entry = uint32_t;
    using Input = uint32_t;
    using Weights = __m512bh;
    using Total = Vec;
    static constexpr int kInputs = 2;
    static Weights read(const Entry* p) { return (__m512bh)_mm512_loadu_si512(p); }
    static Total add(Total total, Input x, Weights w) {
        return (Vec)_mm512_dpbf16_ps((__m512)total, (__m512bh)_mm512_set1_epi32(x), w);
    }
    static void meet(const float* x, int64_t depth, Input* to) {
        each(x, depth, [&](int64_t k, Vec part, int64_t count) {
            bf16 rounded[kLanes];
            store(rounded, part);
            std::memcpy(reinterpret_cast<bf16*>(to) + k, rounded, count * sizeof *rounded);
        });
    }
};
#else
constexpr bool kPairs = false;
#endif

// Weights in 8 bits meet whole numbers with a factor for each group of inputs of a row.
constexpr int64_t kGroup = 128;  // inputs
struct Met {
    float factor;
    int32_t begin;  // where the sum begins
};
template <class Narrow>
Met meet_whole(const float* x, int64_t count, float largest, Narrow* to) {
    typedef Narrow Row __attribute__((vector_size(kLanes * sizeof(Narrow))));
    Vec most = all(1e-30f);
    each(x, count, [&](int64_t, Vec part, int64_t) { most = larger(most, larger(part, -part)); });
    const float factor = largest / fold(most, [](float a, float b) { return std::max(a, b); });
    Vec sum{};
    each(x, count, [&](int64_t k, Vec part, int64_t some) {
        const Vec shifted = part * factor + kMagic;
        const Row row = __builtin_convertvector((Int)shifted - (Int)all(kMagic), Row);
        std::memcpy(to + k, &row, some * sizeof(Narrow));
        sum += shifted - kMagic;
    });
    return {1.0f / factor, int32_t(fold(sum, [](float a, float b) { return a + b; }))};
}
#ifdef __AVX512VNNI__
struct Int8s {  // weight + 128, four inputs of an output, meets 8 bits: a group's sum begins with -128 times its inputs
    using Entry = uint32_t;
    using Input = uint32_t;
    using Weights = __m512i;
    using Total = Int;
    static constexpr int kInputs = 4;
    static Weights read(const Entry* p) { return _mm512_loadu_si512(p); }
    static Total add(Total total, Input x, Weights w) {
        return (Int)_mm512_dpbusd_epi32((__m512i)total, w, _mm512_set1_epi32(x));
    }
    static Met meet(const float* x, int64_t count, Input* to) {
        const Met met = meet_whole(x, count, 127.0f, reinterpret_cast<int8_t*>(to));
        return {met.factor, -128 * met.begin};
    }
};
#else
struct Int8s {  // two inputs of an output meet 16 bits
    using Entry = uint16_t;
    using Input = uint32_t;
    using Total = Int;
    static constexpr int kInputs = 2;
#ifdef __AVX512F__
    using Weights = __m512i;
    static Weights read(const Entry* p) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)p)); }
    static Total add(Total total, Input x, Weights w) {
        return total + (Int)_mm512_madd_epi16(_mm512_set1_epi32(x), w);
    }
#else
    using Weights = __m256i;
    static Weights read(const Entry* p) { return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)p)); }
    static Total add(Total total, Input x, Weights w) {
        return total + (Int)_mm256_madd_epi16(_mm256_set1_epi32(x), w);
    }
#endif
    static Met meet(const float* x, int64_t count, Input* to) {
        return {meet_whole(x, count, 32767.0f, reinterpret_cast<int16_t*>(to)).factor, 0};
    }
};
#endif

// ---- a product ------------------------------------------------------------------------------------------------------

template <class W>
constexpr bool kWhole = std::is_same_v<typename W::Total, Int>;

// ROWS rows of x times PANELS panels: sums (ROWS, PANELS * kPanel). `met`: of each row and group, if there are groups.
template <class W, int ROWS, int PANELS>
void tile(const typename W::Input* x, int64_t x_row, const Met* met, const typename W::Entry* w, int64_t panel,
          int64_t steps, int64_t ahead, float* sums) {
    const int64_t group = kWhole<W> ? kGroup / W::kInputs : steps, groups = (steps + group - 1) / group;
    if constexpr (kWhole<W>) std::fill(sums, sums + ROWS * PANELS * kPanel, 0.0f);
    for (int64_t g = 0; g < groups; g++) {
        typename W::Total total[ROWS][2 * PANELS];
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < 2 * PANELS; j++)
                if constexpr (kWhole<W>)
                    total[i][j] = Int{} + met[i * groups + g].begin;
                else
                    total[i][j] = Vec{};
        for (int64_t k = g * group; k < std::min(steps, (g + 1) * group); k++) {
            typename W::Weights weights[2 * PANELS];
            if (ahead)
                for (int j = 0; j < PANELS; j++)
                    for (int at = 0; at < int(kPanel * sizeof(*w)); at += 64)
                        __builtin_prefetch(reinterpret_cast<const char*>(w + j * panel + k * kPanel) + at + ahead);
            for (int j = 0; j < 2 * PANELS; j++) weights[j] = W::read(w + j / 2 * panel + k * kPanel + j % 2 * kLanes);
            for (int i = 0; i < ROWS; i++)
                for (int j = 0; j < 2 * PANELS; j++) total[i][j] = W::add(total[i][j], x[i * x_row + k], weights[j]);
        }
        for (int i = 0; i < ROWS; i++)
            for (int j = 0; j < 2 * PANELS; j++) {
                float* to = sums + (i * 2 * PANELS + j) * kLanes;
                if constexpr (kWhole<W>)
                    store(to, load(to) + __builtin_convertvector(total[i][j], Vec) * met[i * groups + g].factor);
                else
                    store(to, total[i][j]);
            }
    }
}

template <class W, int PANELS, int ROWS = kRows / PANELS>
void tile_of(int64_t rows, const typename W::Input* x, int64_t x_row, const Met* met, const typename W::Entry* w,
             int64_t panel, int64_t steps, int64_t ahead, float* sums) {
    if (rows == ROWS)
        tile<W, ROWS, PANELS>(x, x_row, met, w, panel, steps, ahead, sums);
    else if constexpr (ROWS > 1)
        tile_of<W, PANELS, ROWS - 1>(rows, x, x_row, met, w, panel, steps, ahead, sums);
}

inline Vec silu(Vec x) { return x / (1.0f + exp2(smaller(x * -kLog2e, all(126.0f)))); }

enum Mode { kPut, kAdd, kGate };  // what becomes of a result y in its place: y, place + y, silu(place) * y

thread_local std::vector<float> wide_panel;

// A panel in float32, if many rows will read it: the same numbers, without taking them apart again and again.
inline const float* widened(const Bfloats::Entry* w, int64_t depth) {
    wide_panel.resize(std::max<size_t>(wide_panel.size(), depth * kPanel));
    float* to = wide_panel.data();
    for (int64_t k = 0; k < depth; k += 2)
        for (int j = 0; j < 2; j++) {
            const Bfloats::Weights both = Bfloats::read(w + k / 2 * kPanel + j * kLanes);
            store(to + k * kPanel + j * kLanes, both.first), store(to + (k + 1) * kPanel + j * kLanes, both.second);
        }
    return to;
}

thread_local std::vector<uint32_t> met_inputs;
thread_local std::vector<Met> met_groups;

template <class W>
void product(const Matrix& a, const float* x, int64_t x_row, int64_t rows, Range panels, float* out, int64_t out_row,
             Mode mode) {
    const auto* weight = static_cast<const typename W::Entry*>(a.weight);
    const int64_t steps = (a.depth + W::kInputs - 1) / W::kInputs, panel = steps * kPanel;
    const auto* input = reinterpret_cast<const typename W::Input*>(x);
    int64_t input_row = x_row / W::kInputs, groups = 0;
    if constexpr (std::is_same_v<typename W::Input, uint32_t>) {
        input_row = steps | 16;  // rows do not share one place in the cache
        met_inputs.resize(std::max<size_t>(met_inputs.size(), rows * input_row));
        input = met_inputs.data();
        if constexpr (kWhole<W>) groups = (a.depth + kGroup - 1) / kGroup;
        met_groups.resize(std::max<size_t>(met_groups.size(), rows * groups));
        for (int64_t i = 0; i < rows; i++) {
            uint32_t* to = met_inputs.data() + i * input_row;
            to[steps - 1] = 0;  // the last one may have fewer inputs
            if constexpr (kWhole<W>)
                for (int64_t g = 0; g < groups; g++)
                    met_groups[i * groups + g] = W::meet(x + i * x_row + g * kGroup, std::min(kGroup, a.depth - g * kGroup),
                                                         to + g * kGroup / W::kInputs);
            else
                W::meet(x + i * x_row, a.depth, to);
        }
    }
    alignas(64) float sums[kRows * kPanel];
    // Few rows: several panels at a time, because a sum waits for the one before it.
    const int64_t joined = rows == 1 ? 4 : rows <= kRows / 2 ? 2 : 1;
    for (int64_t p = panels.begin; p < panels.end;) {
        const int64_t together = p + joined <= panels.end ? joined : 1, most = kRows / together;
        const int64_t parts = (rows + most - 1) / most;
        const float* wide = nullptr;
        if constexpr (std::is_same_v<W, Bfloats>)
            if (parts > kPartsToWiden) wide = widened(weight + p * panel, a.depth);
        for (int64_t part = 0; part < parts; part++) {
            const Range rest = share(rows, part, parts);
            const int64_t count = rest.end - rest.begin;
            const auto* from = input + rest.begin * input_row;
            const Met* met = met_groups.data() + rest.begin * groups;
            // A panel that is read several times is fetched from memory while the last rows meet the one before it.
            const int64_t ahead = parts == 1 ? kAhead : part + 1 == parts ? together * panel * sizeof(*weight) : 0;
            if (together == 4)
                tile_of<W, 4, 1>(count, from, input_row, met, weight + p * panel, panel, steps, ahead, sums);
            else if (together == 2)
                tile_of<W, 2>(count, from, input_row, met, weight + p * panel, panel, steps, ahead, sums);
            else if (wide)
                tile_of<Floats, 1>(count, x + rest.begin * x_row, x_row, nullptr, wide, a.depth * kPanel, a.depth, 0, sums);
            else
                tile_of<W, 1>(count, from, input_row, met, weight + p * panel, panel, steps, ahead, sums);
            for (int64_t i = 0; i < count; i++)
                for (int64_t j = 0; j < 2 * together; j++) {
                    const int64_t column = p * kPanel + j * kLanes;
                    float* to = out + (rest.begin + i) * out_row + column;
                    Vec y = load(sums + (i * 2 * together + j) * kLanes);
                    if constexpr (kWhole<W>) y *= load(a.scale + column);
                    if (a.bias) y += load(a.bias + column);
                    store(to, mode == kPut ? y : mode == kAdd ? load(to) + y : silu(load(to)) * y);
                }
        }
        p += together;
    }
}

inline void multiply(const Matrix& a, const float* x, int64_t x_row, int64_t rows, Range panels, float* out,
                     int64_t out_row, Mode mode) {
    if (rows == 0) return;
    if (a.kind == kFloat) product<Floats>(a, x, x_row, rows, panels, out, out_row, mode);
    if (a.kind == kBfloat) product<Bfloats>(a, x, x_row, rows, panels, out, out_row, mode);
    if (a.kind == kInt8) product<Int8s>(a, x, x_row, rows, panels, out, out_row, mode);
#ifdef __AVX512BF16__
    if (a.kind == kBfloatPairs) product<BfloatPairs>(a, x, x_row, rows, panels, out, out_row, mode);
#endif
}

}  // namespace
