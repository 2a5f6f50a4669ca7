#include "encoding.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"
#include "file.h"
#include "targets.h"
#include "view.h"

namespace sds {

namespace {

constexpr uint64_t kMost = uint64_t{1} << 48;
constexpr uint32_t kMostRotated = 4096;  // columns at a time

float e8m0(uint8_t code) {  // as comfy-kitchen reads it; OCP's definition has 2^−127 and NaN at the ends
    if (code == 0) return 0;
    return code == 255 ? bits_as<float>(F32::inf) : bits_as<float>(static_cast<uint32_t>(code) << 23);
}

float number(Companion::Kind kind, const uint8_t* p) {
    uint16_t half;
    uint32_t word;
    uint64_t wide;
    switch (kind) {
        case Companion::f32: std::memcpy(&word, p, 4); return bits_as<float>(word);
        case Companion::f16: std::memcpy(&half, p, 2); return F16::load(half);
        case Companion::bf16: std::memcpy(&half, p, 2); return BF16::load(half);
        case Companion::e4m3: return E4M3::load(*p);
        case Companion::e8m0: return e8m0(*p);
        case Companion::e5m2: return E5M2::load(*p);
        case Companion::f64: std::memcpy(&wide, p, 8); return static_cast<float>(bits_as<double>(wide));
        case Companion::i16: std::memcpy(&half, p, 2); return static_cast<int16_t>(half);
        case Companion::i32: std::memcpy(&word, p, 4); return static_cast<float>(static_cast<int32_t>(word));
        case Companion::i64: std::memcpy(&wide, p, 8); return static_cast<float>(static_cast<int64_t>(wide));
        default: return *p;
    }
}

// Where the scale of row i and block j lies among the tiled ones (cuBLAS's layout of block scales).
uint64_t tiled_place(uint64_t i, uint64_t j, uint64_t blocks) {
    return (i / 128 * ((blocks + 3) / 4) + j / 4) * 512 + i % 32 * 16 + i % 128 / 32 * 4 + j % 4;
}

}  // namespace

// Values of 4-bit codes: NF4 (Dettmers and others, arXiv 2305.14314), the FP4 of bitsandbytes, E2M1 of OCP's MX
// formats, two's complement.
const float* packed_values(Coding kind) {
    static const float nf4[] = {-1.0f,
                                -0.6961928009986877f,
                                -0.5250730514526367f,
                                -0.39491748809814453f,
                                -0.28444138169288635f,
                                -0.18477343022823334f,
                                -0.09105003625154495f,
                                0.0f,
                                0.07958029955625534f,
                                0.16093020141124725f,
                                0.24611230194568634f,
                                0.33791524171829224f,
                                0.44070982933044434f,
                                0.5626170039176941f,
                                0.7229568362236023f,
                                1.0f};
    static const float fp4[] = {0.0f,
                                0.0052083334885537624f,
                                0.6666666865348816f,
                                1.0f,
                                0.3333333432674408f,
                                0.5f,
                                0.1666666716337204f,
                                0.25f,
                                -0.0f,
                                -0.0052083334885537624f,
                                -0.6666666865348816f,
                                -1.0f,
                                -0.3333333432674408f,
                                -0.5f,
                                -0.1666666716337204f,
                                -0.25f};
    static const float e2m1[] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                 -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
    static const float i4[] = {0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1};
    return kind == Coding::nf4 ? nf4 : kind == Coding::fp4 ? fp4 : kind == Coding::e2m1 ? e2m1 : i4;
}

uint64_t Companion::item() const {
    switch (kind) {
        case f64:
        case i64: return 8;
        case f32:
        case i32: return 4;
        case f16:
        case bf16:
        case i16: return 2;
        default: return 1;
    }
}

void Companion::check(const Source& from) const {
    const bool fits = kind >= f32 && kind < kCount && count <= kMost &&
                      (!view || (view->item() == item() && view->elements() == count));
    const uint64_t reach = fits && view ? view->reach() : fits ? bytes() : 0;
    if (!fits || offset > from.size() || reach > from.size() - offset)
        throw Error(Code::invalid, "numbers beside codes or of an adapter lie outside their file");
}

std::vector<float> Companion::numbers(const std::vector<std::shared_ptr<Source>>& sources) const {
    const uint64_t size = item();
    std::vector<uint8_t> stored(bytes() + (view ? 2 * size : 0));
    const uint8_t* at = stored.data();
    if (view) {
        at = sources[source]->gather(*view, offset, 0, bytes(), stored.data());
    } else {
        sources[source]->read(stored.data(), stored.size(), offset);
    }
    std::vector<float> found(count);
    for (uint64_t i = 0; i < count; ++i) found[i] = number(kind, at + i * size);
    return found;
}

void Encoding::check(const std::vector<std::shared_ptr<Source>>& sources) const {
    const auto refuse = [](const char* why) { throw Error(Code::invalid, why); };
    if (codes < Coding::e4m3 || codes >= Coding::kCount) refuse("unknown codes");
    if (rows == 0 || columns == 0 || rows > kMost / columns || stored_columns < columns ||
        rows > kMost / stored_columns)
        refuse("an impossible encoded weight");
    if (start > rows * columns || block_rows == 0 || block_columns == 0 || per == 0 || inner == 0)
        refuse("an impossible encoded weight");
    if (is_packed(codes) && stored_columns % 2 != 0 && rows > 1) refuse("rows of packed codes fill whole bytes");
    const auto held = [&](const Companion& part, uint64_t least) {
        if (part.source >= sources.size() || part.count < least) refuse("an encoded weight lacks scales");
        part.check(*sources[part.source]);
    };
    const uint64_t grid_rows = (rows + block_rows - 1) / block_rows;
    held(scales, tiled ? (grid_rows + 127) / 128 * 128 * ((tile_columns() + 3) / 4 * 4) : grid_rows * grid_columns());
    if (map) held(*map, 256);
    if ((scales.kind == Companion::u8) != map.has_value()) refuse("scales need a map, or have one too many");
    if (times) held(*times, (scales.count + per - 1) / per);
    if (by_column) held(*by_column, columns);
    uint32_t power = 1;
    while (power < group && power < kMostRotated) power *= 4;
    if (power != group || columns % (group * inner) != 0) refuse("an impossible rotation");
}

void Decoder::prepare(const std::shared_ptr<const Encoding>& encoding,
                      const std::vector<std::shared_ptr<Source>>& sources) {
    if (encoding_ == encoding) return;
    encoding_ = nullptr;
    const Encoding& e = *encoding;
    std::vector<float> stored = e.scales.numbers(sources);
    if (e.map) {
        const std::vector<float> map = e.map->numbers(sources);
        for (float& value : stored) value = map[static_cast<size_t>(value)];
    }
    if (e.times) {
        const std::vector<float> times = e.times->numbers(sources);
        for (size_t i = 0; i < stored.size(); ++i) stored[i] *= times[i / e.per];
    }
    if (e.plus != 0) {
        for (float& value : stored) value += e.plus;
    }
    if (e.tiled) {
        const uint64_t rows = (e.rows + e.block_rows - 1) / e.block_rows, blocks = e.grid_columns();
        scales_.resize(rows * blocks);
        for (uint64_t i = 0; i < rows; ++i) {
            for (uint64_t j = 0; j < blocks; ++j) scales_[i * blocks + j] = stored[tiled_place(i, j, e.tile_columns())];
        }
    } else {
        scales_ = std::move(stored);
    }
    by_column_ = e.by_column ? e.by_column->numbers(sources) : std::vector<float>();
    encoding_ = encoding;
}

Decoder::Range Decoder::range(uint64_t first, uint64_t count) const {
    const Encoding& e = *encoding_;
    const uint64_t from = e.start + first, to = from + count, row_bytes = e.stored_row_bytes();
    if (e.group > 1) {  // whole rows
        const uint64_t low = from / e.columns, high = (to + e.columns - 1) / e.columns;
        return {low * row_bytes, (high - low) * row_bytes};
    }
    const auto byte = [&](uint64_t element) {
        const uint64_t column = element % e.columns;
        return element / e.columns * row_bytes + (is_packed(e.codes) ? column / 2 : column);
    };
    return {byte(from), byte(to - 1) - byte(from) + 1};
}

uint8_t* Decoder::room(uint64_t bytes) {
    if (raw_.size() < bytes) raw_.resize(bytes);
    return raw_.data();
}

float Decoder::scale_at(uint64_t row, uint64_t column) const {
    const Encoding& e = *encoding_;
    return scales_[row / e.block_rows * e.grid_columns() + column / e.block_columns];
}

// Columns `from` to `to` of a row, before any rotation; `codes` begins with the weight's byte `begin`.
void Decoder::decode_row(const Target& target, const uint8_t* codes, uint64_t begin, uint64_t row, uint64_t from,
                         uint64_t to, float* out) {
    const Encoding& e = *encoding_;
    const uint64_t in_byte = is_packed(e.codes) ? 2 : 1, before = row * e.stored_row_bytes() * in_byte;
    for (uint64_t column = from; column < to;) {
        const uint64_t end = std::min(to, (column / e.block_columns + 1) * e.block_columns);
        target.decode(e.codes, e.low_first, codes, before + column - begin * in_byte, end - column,
                      e.rotates_codes() ? 1 : scale_at(row, column), out + (column - from));
        column = end;
    }
    if (e.factor != 1) {
        for (uint64_t i = 0; i < to - from; ++i) out[i] *= e.factor;
    }
}

void Decoder::rotate_row(uint64_t row, float* values) {
    const Encoding& e = *encoding_;
    const double root = std::sqrt(static_cast<double>(e.group));  // a power of two
    const float scale = e.rotates_codes() ? scale_at(row, 0) : 1;
    double x[kMostRotated];
    for (uint64_t begin = 0; begin < e.columns; begin += e.group * e.inner) {
        for (uint64_t k = 0; k < e.inner; ++k) {
            float* const at = values + begin + k;
            for (uint32_t i = 0; i < e.group; ++i) x[i] = at[i * e.inner];
            for (uint32_t step = 1; step < e.group; step *= 4) {
                for (uint32_t i = 0; i < e.group; ++i) {
                    if (i / step % 4 != 0) continue;
                    const double a = x[i], b = x[i + step], c = x[i + 2 * step], d = x[i + 3 * step];
                    x[i] = ((a + b) + c) - d;
                    x[i + step] = ((a + b) - c) + d;
                    x[i + 2 * step] = ((a - b) + c) + d;
                    x[i + 3 * step] = ((b - a) + c) + d;
                }
            }
            for (uint32_t i = 0; i < e.group; ++i) at[i * e.inner] = static_cast<float>(x[i] / root) * scale;
        }
    }
}

const float* Decoder::decode(const Target& target, const uint8_t* codes, uint64_t first, uint64_t count) {
    const Encoding& e = *encoding_;
    const uint64_t begin = range(first, count).first;
    uint64_t from = e.start + first, end = from + count, skip = 0;
    if (e.group > 1) {
        skip = from % e.columns;
        from -= skip;
        end = (end + e.columns - 1) / e.columns * e.columns;
    }
    if (out_.size() < end - from) out_.resize(end - from);
    for (uint64_t at = from; at < end;) {
        const uint64_t row = at / e.columns, column = at % e.columns;
        const uint64_t to = std::min(end, (row + 1) * e.columns);
        float* const out = out_.data() + (at - from);
        decode_row(target, codes, begin, row, column, column + (to - at), out);
        if (e.group > 1) rotate_row(row, out);
        if (e.by_column) {
            for (uint64_t i = 0; i < to - at; ++i) out[i] *= by_column_[column + i];
        }
        at = to;
    }
    return out_.data() + skip;
}

}  // namespace sds
