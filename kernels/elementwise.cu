// The CUDA loop: load → formula → round → store, over rows (tensors, or stretches of them) of equal dtypes.
//
// Numeric rule: as on the CPU (csrc/elementwise.inl.h). The formulas are those of csrc/formulas.h, evaluated in float32
// or float64 with every operation rounded by itself (compile with --fmad=false; no flush to zero, exact division); a
// pack whose results show a NaN, an Inf or an overflow is done again, element by element, by the careful store of
// csrc/dtypes.h.
//
// A pack is what one thread loads at a time: as many elements as make 16 bytes of the widest dtype at hand. Operands
// that are aligned for it are loaded at once, others element by element. Elements before the output's first aligned
// pack (the head) and after its last (the tail) are done singly. A block takes a tile of packs, finds its row, and
// strides on when there are more tiles than blocks; so a thousand small tensors are one launch.
//
// Compiled by CMakeLists.txt (SDS_CUDA); the tests read the PTX: tests/backends/test_ptx.py.

#include <cuda_runtime.h>
#include <math.h>

#include <algorithm>
#include <type_traits>

#include "launch.h"
#include "packs.cuh"
#include "status.h"

extern __shared__ uint4 sds_slots[];  // of any_steps, as many as the launch asks for

namespace sds {
namespace cuda {
namespace {

constexpr int kThreads = 256;      // of a block of the fused kernels
constexpr int kStepThreads = 128;  // of the kernel for any program, fewer when it needs more slots
constexpr int kSharedBytes = 48 << 10;
constexpr uint64_t kMostBlocks = 1 << 20;
constexpr uint64_t kMostTiles = UINT32_MAX - kMostBlocks;  // so that a block's next tile is still a number

// What a launch carries in its parameters (4 KB at most). A row is: out, count, first tile | head << 32, aligned
// operands as bits, then the operands' addresses.
constexpr int kRowWords = 4;
template <int Inputs, int Words>
struct Table {
    uint64_t* counts;
    uint64_t careful;  // bits of the smallest magnitude that takes the careful store
    uint32_t rows, tiles;
    Overflow overflow;
    int inputs;
    uint8_t out;
    uint8_t in[Inputs];
    uint64_t words[Words];

    __host__ __device__ int stride() const { return kRowWords + inputs; }
};

struct Place {  // where a tile lies
    const uint64_t* row;
    int number;
    uint64_t packs_before;  // of its row
};

template <class Rows>
__device__ Place place_of(const Rows& table, uint32_t tile, uint32_t packs_a_tile) {
    int low = 0, high = static_cast<int>(table.rows) - 1;  // the last row whose first tile is not after this one
    const int stride = table.stride();
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (static_cast<uint32_t>(table.words[middle * stride + 2]) <= tile) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    const uint64_t* row = table.words + low * stride;
    return {row, low, static_cast<uint64_t>(tile - static_cast<uint32_t>(row[2])) * packs_a_tile};
}

template <class Rows>
__device__ uint64_t* counts_of(const Rows& table, int row) {
    return table.counts == nullptr ? nullptr : table.counts + 2 * row;
}

// ---- the hot formulas: everything in registers

constexpr int kFusedWords = 448;
template <class Formula>
using FusedTable = Table<Formula::inputs, kFusedWords>;
template <class Formula, class T>
struct Constants {
    T c[Formula::constants + 1];
};

template <class Formula, class T>
__device__ __noinline__ void fused_one(const FusedTable<Formula>& table, const Constants<Formula, T>& constants,
                                       const uint64_t* row, int number, uint64_t i) {
    T x[Formula::inputs];
    bool finite = true;
#pragma unroll
    for (int k = 0; k < Formula::inputs; ++k) {
        const DType dtype = static_cast<DType>(table.in[k]);
        x[k] = load_one<T>(reinterpret_cast<const uint8_t*>(row[kRowWords + k]) + i * size_of(dtype), dtype);
        finite &= magnitude_bits(x[k]) < Bits<T>::inf;
    }
    const DType out = static_cast<DType>(table.out);
    store_one(reinterpret_cast<uint8_t*>(row[0]) + i * size_of(out), out, Formula::apply(x, constants.c), finite,
              table.overflow, counts_of(table, number));
}

template <class Formula>
constexpr int kPacksAThread = Formula::inputs == 1 ? 4 : 2;  // enough bytes under way, few enough registers

template <class Formula, class T, int V>
__global__ void __launch_bounds__(kThreads)
    fused(const __grid_constant__ FusedTable<Formula> table, const __grid_constant__ Constants<Formula, T> constants) {
    constexpr int kInputs = Formula::inputs, kPacks = kPacksAThread<Formula>;
    int size[kInputs];
#pragma unroll
    for (int k = 0; k < kInputs; ++k) size[k] = static_cast<int>(size_of(static_cast<DType>(table.in[k])));
    const DType out = static_cast<DType>(table.out);
    const int out_size = static_cast<int>(size_of(out));
    for (uint32_t tile = blockIdx.x; tile < table.tiles; tile += gridDim.x) {
        const Place place = place_of(table, tile, kThreads * kPacks);
        const uint64_t* row = place.row;
        const uint64_t count = row[1], head = row[2] >> 32, aligned = row[3];
        const uint64_t packs = (count - head) / V;
        uint4 raw[kPacks][kInputs];
#pragma unroll
        for (int u = 0; u < kPacks; ++u) {
            const uint64_t pack = place.packs_before + u * kThreads + threadIdx.x;
            if (pack >= packs) continue;
#pragma unroll
            for (int k = 0; k < kInputs; ++k) {
                const uint8_t* from = reinterpret_cast<const uint8_t*>(row[kRowWords + k]);
                raw[u][k] = load_pack<V>(from + (head + pack * V) * size[k], size[k], aligned >> k & 1);
            }
        }
#pragma unroll
        for (int u = 0; u < kPacks; ++u) {
            const uint64_t pack = place.packs_before + u * kThreads + threadIdx.x;
            if (pack >= packs) continue;
            T x[kInputs][V], y[V];
#pragma unroll
            for (int k = 0; k < kInputs; ++k) widen<V>(raw[u][k], static_cast<DType>(table.in[k]), x[k]);
            typename Bits<T>::type peak = 0;
#pragma unroll
            for (int e = 0; e < V; ++e) {
                T each[kInputs];
#pragma unroll
                for (int k = 0; k < kInputs; ++k) each[k] = x[k][e];
                y[e] = Formula::apply(each, constants.c);
                const auto bits = magnitude_bits(y[e]);
                peak = bits > peak ? bits : peak;
            }
            const uint64_t first = head + pack * V;
            if (peak < table.careful) {
                store_pack<V>(reinterpret_cast<uint8_t*>(row[0]) + first * out_size, round_to<V>(y, out), out_size);
            } else {
                for (int e = 0; e < V; ++e) fused_one<Formula, T>(table, constants, row, place.number, first + e);
            }
        }
        if (place.packs_before == 0) {  // the row's first tile does its head and tail
            const uint64_t tail = head + packs * V;
            if (threadIdx.x < head) fused_one<Formula, T>(table, constants, row, place.number, threadIdx.x);
            if (threadIdx.x < count - tail)
                fused_one<Formula, T>(table, constants, row, place.number, tail + threadIdx.x);
        }
    }
}

// ---- any other program: its steps, over slots in shared memory

constexpr int kMostSteps = 160, kMostConstants = 48, kMostSlots = 96, kStepInputs = 32, kStepWords = 216;
constexpr uint16_t kConstantBit = 0x8000;

struct PackedStep {
    uint8_t op, to;  // slot
    uint16_t a, b;   // slot, or constant | kConstantBit
};
struct Steps {
    int count;
    uint16_t result;
    PackedStep step[kMostSteps];
    double constants[kMostConstants];
};
using StepTable = Table<kStepInputs, kStepWords>;
static_assert(sizeof(StepTable) + sizeof(Steps) <= 4096, "kernel parameters end at 4 KB");

// This thread's slots: V numbers each, as planes of 16 bytes, in which a thread's neighbour is the next thread's.
template <class T, int V>
struct Slots {
    static constexpr int planes = (V * static_cast<int>(sizeof(T)) + 15) / 16, a_plane = V / planes;
    static constexpr int bytes = planes * 16;
    uint4* mine;

    __device__ uint4* at(int slot, int plane) const { return mine + (slot * planes + plane) * blockDim.x; }
    __device__ void read(int slot, T* to) const {
#pragma unroll
        for (int p = 0; p < planes; ++p) {
            const uint4 raw = *at(slot, p);
            memcpy(to + p * a_plane, &raw, a_plane * sizeof(T));
        }
    }
    __device__ void write(int slot, const T* from) const {
#pragma unroll
        for (int p = 0; p < planes; ++p) {
            uint4 raw = {0, 0, 0, 0};
            memcpy(&raw, from + p * a_plane, a_plane * sizeof(T));
            *at(slot, p) = raw;
        }
    }
};

template <class T, int V>
__device__ void operate(Op op, const T* a, const T* b, const T* c, T* y) {
#define SDS_EACH(expression)                                             \
    _Pragma("unroll") for (int e = 0; e < V; ++e) { y[e] = expression; } \
    break
    switch (op) {
        case Op::add: SDS_EACH(a[e] + b[e]);
        case Op::sub: SDS_EACH(a[e] - b[e]);
        case Op::mul: SDS_EACH(a[e] * b[e]);
        case Op::div: SDS_EACH(a[e] / b[e]);
        case Op::neg: SDS_EACH(-a[e]);
        case Op::abs: SDS_EACH(a[e] < 0 ? -a[e] : a[e] + T(0));
        case Op::minimum: SDS_EACH(a[e] < b[e] || a[e] != a[e] ? a[e] : b[e]);
        case Op::maximum: SDS_EACH(a[e] > b[e] || a[e] != a[e] ? a[e] : b[e]);
        case Op::lt: SDS_EACH(a[e] < b[e] ? T(1) : T(0));
        case Op::le: SDS_EACH(a[e] <= b[e] ? T(1) : T(0));
        case Op::gt: SDS_EACH(a[e] > b[e] ? T(1) : T(0));
        case Op::ge: SDS_EACH(a[e] >= b[e] ? T(1) : T(0));
        case Op::eq: SDS_EACH(a[e] == b[e] ? T(1) : T(0));
        case Op::ne: SDS_EACH(a[e] != b[e] ? T(1) : T(0));
        case Op::sqrt: SDS_EACH(sqrt(a[e]));
        case Op::sign: SDS_EACH(a[e] > 0 ? T(1) : a[e] < 0 ? T(-1) : a[e] == 0 ? T(0) : a[e]);
        case Op::copysign: SDS_EACH(functions::lane_copysign(a[e], b[e]));
        case Op::pow: SDS_EACH(functions::lane_pow(a[e], b[e]));
        case Op::floor: SDS_EACH(floor(a[e]));
        case Op::exp: SDS_EACH(functions::lane_exp(a[e]));
        case Op::log: SDS_EACH(functions::lane_log(a[e]));
        case Op::where: SDS_EACH(a[e] != 0 ? b[e] : c[e]);
        case Op::fma: SDS_EACH(fma(a[e], b[e], c[e]));
        case Op::kCount: break;
    }
#undef SDS_EACH
}

// The program on the inputs in this thread's slots.
template <class T, int V>
__device__ void run_steps(const Steps& steps, Slots<T, V> slots, T* y) {
    const auto read = [&](uint16_t at, T* to) {
        if (at & kConstantBit) {
            const T c = static_cast<T>(steps.constants[at & ~kConstantBit]);  // float32: rounded by the host already
#pragma unroll
            for (int e = 0; e < V; ++e) to[e] = c;
        } else {
            slots.read(at, to);
        }
    };
    for (int s = 0; s < steps.count; ++s) {
        const PackedStep step = steps.step[s];
        T a[V], b[V], c[V], to[V];
        read(step.a, a);
        read(step.b, b);
        if (arity(static_cast<Op>(step.op)) > 2) read(steps.step[++s].a, c);  // it takes two places
        operate<T, V>(static_cast<Op>(step.op), a, b, c, to);
        slots.write(step.to, to);
    }
    read(steps.result, y);
}

// Up to V elements from `first` on, one by one in and out.
template <class T, int V>
__device__ __noinline__ void steps_singly(const StepTable& table, const Steps& steps, Slots<T, V> slots,
                                          const uint64_t* row, int number, uint64_t first, int n) {
    const DType out = static_cast<DType>(table.out);
    bool finite[V];
    for (int e = 0; e < V; ++e) finite[e] = true;
    for (int k = 0; k < table.inputs; ++k) {
        const DType dtype = static_cast<DType>(table.in[k]);
        const uint8_t* from = reinterpret_cast<const uint8_t*>(row[kRowWords + k]) + first * size_of(dtype);
        T x[V];
        for (int e = 0; e < V; ++e) {
            x[e] = e < n ? load_one<T>(from + e * size_of(dtype), dtype) : T(0);
            finite[e] &= magnitude_bits(x[e]) < Bits<T>::inf;
        }
        slots.write(k, x);
    }
    T y[V];
    run_steps<T, V>(steps, slots, y);
    for (int e = 0; e < n; ++e) {
        store_one(reinterpret_cast<uint8_t*>(row[0]) + (first + e) * size_of(out), out, y[e], finite[e], table.overflow,
                  counts_of(table, number));
    }
}

constexpr int kAtOnce = 4;  // loads under way: a thread's next inputs are asked for before the first has come

template <class T, int V>
__global__ void any_steps(const __grid_constant__ StepTable table, const __grid_constant__ Steps steps) {
    const Slots<T, V> slots{sds_slots + threadIdx.x};
    const DType out = static_cast<DType>(table.out);
    const int out_size = static_cast<int>(size_of(out));
    for (uint32_t tile = blockIdx.x; tile < table.tiles; tile += gridDim.x) {
        const Place place = place_of(table, tile, blockDim.x);
        const uint64_t* row = place.row;
        const uint64_t count = row[1], head = row[2] >> 32, aligned = row[3];
        const uint64_t packs = (count - head) / V, pack = place.packs_before + threadIdx.x;
        if (pack < packs) {
            const uint64_t first = head + pack * V;
            bool careful = false;
            for (int next = 0; next < table.inputs; next += kAtOnce) {
                uint4 raw[kAtOnce];
#pragma unroll
                for (int u = 0; u < kAtOnce; ++u) {
                    const int k = next + u;
                    if (k >= table.inputs) continue;
                    const int size = static_cast<int>(size_of(static_cast<DType>(table.in[k])));
                    const uint8_t* from = reinterpret_cast<const uint8_t*>(row[kRowWords + k]) + first * size;
                    raw[u] = load_pack<V>(from, size, aligned >> k & 1);
                }
#pragma unroll
                for (int u = 0; u < kAtOnce; ++u) {
                    const int k = next + u;
                    if (k >= table.inputs) continue;
                    T x[V];
                    widen<V>(raw[u], static_cast<DType>(table.in[k]), x);
#pragma unroll
                    for (int e = 0; e < V; ++e) careful |= magnitude_bits(x[e]) >= Bits<T>::inf;
                    slots.write(k, x);
                }
            }
            T y[V];
            run_steps<T, V>(steps, slots, y);
#pragma unroll
            for (int e = 0; e < V; ++e) careful |= magnitude_bits(y[e]) >= table.careful;
            if (careful) {
                steps_singly<T, V>(table, steps, slots, row, place.number, first, V);
            } else {
                store_pack<V>(reinterpret_cast<uint8_t*>(row[0]) + first * out_size, round_to<V>(y, out), out_size);
            }
        }
        if (place.packs_before == 0 && threadIdx.x == 0) {  // the row's head and tail, a pack at a time at most
            const uint64_t tail = head + packs * V;
            if (head) steps_singly<T, V>(table, steps, slots, row, place.number, 0, static_cast<int>(head));
            if (count > tail)
                steps_singly<T, V>(table, steps, slots, row, place.number, tail, static_cast<int>(count - tail));
        }
    }
}

// ---- the host's side

bool is_wide(const Launch& launch) {
    bool wide = launch.program.wide;
    for (DType dtype : launch.in) wide |= dtype == DType::f64;
    return wide;
}

int pack_elements(const Launch& launch) {
    size_t widest = size_of(launch.out);
    for (DType dtype : launch.in) widest = std::max(widest, size_of(dtype));
    return static_cast<int>(16 / widest);
}

// Elements until the output is aligned for packs.
uint64_t head_of(const Row& row, uint64_t pack_bytes, uint64_t size) {
    const uint64_t past = row.out % pack_bytes;
    return std::min(row.count, past == 0 ? 0 : (pack_bytes - past) / size);
}

template <class... Parameters>
void start(void (*kernel)(Parameters...), unsigned blocks, int threads, int shared_bytes, void* stream,
           const std::common_type_t<Parameters>&... parameters) {
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.stream = static_cast<cudaStream_t>(stream);
    check(cudaLaunchKernelEx(&config, kernel, parameters...));
}

// Cuts the rows into tables and hands each to `launch_one`.
template <class Rows, class LaunchOne>
void in_tables(const Launch& launch, const std::vector<Row>& rows, Rows& table, int words, int v, uint64_t tile_packs,
               LaunchOne launch_one) {
    const uint64_t out_size = size_of(launch.out), out_pack = out_size * v;
    table.inputs = static_cast<int>(launch.in.size());
    for (size_t k = 0; k < launch.in.size(); ++k) table.in[k] = static_cast<uint8_t>(launch.in[k]);
    table.out = static_cast<uint8_t>(launch.out);
    table.overflow = launch.overflow;
    table.careful = is_wide(launch) ? careful_from_wide(launch.out) : careful_from(launch.out);
    const uint32_t most = static_cast<uint32_t>(words / table.stride());
    for (size_t next = 0; next < rows.size();) {
        const size_t begin = next;
        uint64_t tiles = 0;
        for (table.rows = 0; next < rows.size() && table.rows < most; ++next) {
            const Row& row = rows[next];
            if (row.out % out_size != 0) throw Error(Code::invalid, "an output is off its dtype's alignment");
            if (row.out == 0 && row.count != 0) throw Error(Code::invalid, "an output has no memory");
            const uint64_t head = head_of(row, out_pack, out_size);
            const uint64_t more = std::max<uint64_t>(1, ((row.count - head) / v + tile_packs - 1) / tile_packs);
            if (more > kMostTiles) throw Error(Code::invalid, "a tensor is too large for one launch");
            if (tiles + more > kMostTiles) break;
            uint64_t* to = table.words + table.rows * table.stride();
            to[0] = row.out;
            to[1] = row.count;
            to[2] = tiles | head << 32;
            to[3] = 0;
            for (int k = 0; k < table.inputs; ++k) {
                const uint64_t size = size_of(launch.in[k]);
                if (row.in[k] % size != 0) throw Error(Code::invalid, "an input is off its dtype's alignment");
                if (row.in[k] == 0 && row.count != 0) throw Error(Code::invalid, "an input has no memory");
                to[3] |= static_cast<uint64_t>((row.in[k] + head * size) % (size * v) == 0) << k;
                to[kRowWords + k] = row.in[k];
            }
            tiles += more;
            ++table.rows;
        }
        table.tiles = static_cast<uint32_t>(tiles);
        table.counts = launch.counts == nullptr ? nullptr : launch.counts + 2 * begin;
        launch_one(static_cast<unsigned>(std::min(tiles, kMostBlocks)));
    }
}

template <class Formula, class T, int V>
void enqueue_fused(const Launch& launch, const std::vector<Row>& rows) {
    FusedTable<Formula> table;
    Constants<Formula, T> constants{};
    for (int k = 0; k < Formula::constants; ++k) constants.c[k] = launch.numbers.of(T())[k];
    in_tables(launch, rows, table, kFusedWords, V, kThreads * kPacksAThread<Formula>, [&](unsigned blocks) {
        start(fused<Formula, T, V>, blocks, kThreads, 0, launch.stream, table, constants);
    });
}

struct FusedStarter {  // finds the formula by its number
    const Launch& launch;
    const std::vector<Row>& rows;
    bool wide;
    int v, next = 0;
    template <class Formula>
    void operator()(Formula) {
        if (next++ != launch.program.fused) return;
        if (wide) return enqueue_fused<Formula, double, 2>(launch, rows);
        if (v == 4) return enqueue_fused<Formula, float, 4>(launch, rows);
        if (v == 8) return enqueue_fused<Formula, float, 8>(launch, rows);
        enqueue_fused<Formula, float, 16>(launch, rows);
    }
};

int slots_of(const Program& program) { return program.inputs + program.temps; }

Steps packed(const Program& program, const Numbers& numbers, bool wide) {
    Steps steps{};
    const auto at = [&program](Ref ref) {
        const int index = ref.kind == Ref::temp ? program.inputs + ref.index : ref.index;
        return static_cast<uint16_t>(ref.kind == Ref::constant ? index | kConstantBit : index);
    };
    for (const Step& step : program.steps) {
        steps.step[steps.count++] = {static_cast<uint8_t>(step.op), static_cast<uint8_t>(program.inputs + step.to),
                                     at(step.a), at(arity(step.op) > 1 ? step.b : step.a)};
        if (arity(step.op) > 2) steps.step[steps.count++].a = at(step.c);
    }
    steps.result = at(program.result);
    for (size_t k = 0; k < numbers.wide.size(); ++k) steps.constants[k] = wide ? numbers.wide[k] : numbers.narrow[k];
    return steps;
}

template <class T, int V>
void enqueue_steps(const Launch& launch, const std::vector<Row>& rows, bool wide) {
    const Steps steps = packed(launch.program, launch.numbers, wide);
    const int a_thread = slots_of(launch.program) * Slots<T, V>::bytes;
    int threads = kStepThreads;
    while (threads * a_thread > kSharedBytes) threads /= 2;
    StepTable table;
    in_tables(launch, rows, table, kStepWords, V, static_cast<uint64_t>(threads), [&](unsigned blocks) {
        start(any_steps<T, V>, blocks, threads, threads * a_thread, launch.stream, table, steps);
    });
}

}  // namespace

std::string unsupported(const Program& program, const std::vector<DType>&, DType) {
    if (program.fused >= 0) return "";
    if (program.inputs < 1 || program.inputs > kStepInputs) return "it takes more than 32 inputs";
    size_t packed_steps = 0;
    for (const Step& step : program.steps) packed_steps += arity(step.op) > 2 ? 2 : 1;
    if (packed_steps > kMostSteps) return "it has more than 160 operations";
    if (program.constants > static_cast<int>(kMostConstants)) return "it has more than 48 numbers";
    if (slots_of(program) > kMostSlots) return "it needs too many intermediate results";
    return "";
}

void enqueue(const Launch& launch, const std::vector<Row>& all) {
    const std::string why = unsupported(launch.program, launch.in, launch.out);
    if (!why.empty()) throw Error(Code::invalid, "the CUDA kernels cannot evaluate this formula: " + why);
    if (launch.in.size() != static_cast<size_t>(launch.program.inputs))
        throw Error(Code::invalid, "wrong operand count");
    if (all.empty()) return;
    const bool wide = is_wide(launch);
    const int v = wide ? 2 : pack_elements(launch);
    if (launch.program.fused >= 0 && (wide || v >= 4)) {
        FusedStarter starter{launch, all, wide, v};
        formulas::for_each(starter);
    } else if (wide) {
        enqueue_steps<double, 2>(launch, all, true);
    } else if (v == 2) {
        enqueue_steps<float, 2>(launch, all, false);
    } else if (v >= 8 && slots_of(launch.program) * Slots<float, 8>::bytes * kStepThreads <= kSharedBytes) {
        enqueue_steps<float, 8>(launch, all, false);
    } else {
        enqueue_steps<float, 4>(launch, all, false);
    }
}

}  // namespace cuda
}  // namespace sds
