#include "low_rank.h"

#include <algorithm>

#include "error.h"
#include "file.h"
#include "targets.h"

namespace sds {

namespace {

constexpr uint64_t kMost = uint64_t{1} << 40;  // of a factor's elements

std::vector<float> multiplied(const std::vector<float>& left, const std::vector<float>& right, uint64_t rows,
                              uint64_t columns, uint64_t rank, const Target& target) {
    std::vector<float> out(rows * columns);
    target.product(left.data(), rank, right.data(), columns, rows, columns, rank, out.data(), columns);
    return out;
}

void require(bool holds) {
    if (!holds) throw Error(Code::invalid, "an adapter's factors do not fit");
}

// [rows, columns] of a matrix that is stored as [columns, rows].
std::vector<float> transposed(const std::vector<float>& from, uint64_t rows, uint64_t columns) {
    std::vector<float> out(rows * columns);
    for (uint64_t i = 0; i < rows; ++i) {
        for (uint64_t j = 0; j < columns; ++j) out[i * columns + j] = from[j * rows + i];
    }
    return out;
}

// The matrix as panels of some columns, one behind the other: what a block of a product reads lies together, whatever
// the number of columns (rows that are a power of two apart would meet in the cache).
constexpr uint64_t kPanel = 64;
std::vector<float> in_panels(const std::vector<float>& from, uint64_t rows, uint64_t columns) {
    std::vector<float> out((columns + kPanel - 1) / kPanel * kPanel * rows);
    for (uint64_t begin = 0; begin < columns; begin += kPanel) {
        const uint64_t width = std::min(kPanel, columns - begin);
        for (uint64_t i = 0; i < rows; ++i)
            std::copy_n(from.data() + i * columns + begin, width, out.data() + begin * rows + i * kPanel);
    }
    return out;
}

// Values at places of a matrix of zeros, one after the other.
std::vector<float> scattered(const std::vector<float>& places, const std::vector<float>& values, uint64_t rows,
                             uint64_t columns) {
    std::vector<float> out(rows * columns);
    const size_t count = values.size();
    for (size_t i = 0; i < count; ++i) {
        const float row = places[i], column = places[count + i];
        require(row >= 0 && row < static_cast<float>(rows) && column >= 0 && column < static_cast<float>(columns));
        out[static_cast<uint64_t>(row) * columns + static_cast<uint64_t>(column)] += values[i];
    }
    return out;
}

// [rank, q·taps] of core [rank, inner, taps] and right [inner, q].
std::vector<float> with_kernel(const std::vector<float>& core, const std::vector<float>& right, uint64_t rank,
                               uint64_t inner, uint64_t columns, const Target& target) {
    const uint64_t taps = core.size() / (rank * inner), q = columns / taps;
    std::vector<float> left(core.size()), out(rank * columns);
    for (uint64_t i = 0; i < rank; ++i) {
        for (uint64_t j = 0; j < inner; ++j) {
            for (uint64_t t = 0; t < taps; ++t) left[(i * taps + t) * inner + j] = core[(i * inner + j) * taps + t];
        }
    }
    const std::vector<float> made = multiplied(left, right, rank * taps, q, inner, target);
    for (uint64_t i = 0; i < rank; ++i) {
        for (uint64_t t = 0; t < taps; ++t) {
            for (uint64_t c = 0; c < q; ++c) out[i * columns + c * taps + t] = made[(i * taps + t) * q + c];
        }
    }
    return out;
}

}  // namespace

void Matrix::check(const std::vector<std::shared_ptr<Source>>& sources) const {
    require(form >= stored && form < kCount && rows && columns && rows <= kMost / columns);
    static const size_t wanted[] = {1, 2, 2, 3, 2};
    require(parts.size() == wanted[form]);
    for (const Companion& part : parts) {
        require(part.source < sources.size() && part.count <= kMost);
        part.check(*sources[part.source]);
    }
    if (form == stored) {
        require(parts[0].count == rows * columns);
    } else if (form == product) {
        require(rank && rank <= kMost && parts[0].count / rank == rows && parts[0].count % rank == 0 &&
                parts[1].count / rank == columns && parts[1].count % rank == 0);
    } else if (form == sparse) {
        require(parts[0].count % 2 == 0 && parts[0].count / 2 == parts[1].count);
    } else {
        const bool turns = form == turned_product;
        const uint64_t high = turns ? rank : rows;
        const Companion &core = parts[turns ? 1 : 0], &right = parts[turns ? 2 : 1];
        require(high && inner && high <= kMost && inner <= kMost / high && core.count);
        require(core.count % (high * inner) == 0);
        const uint64_t taps = core.count / (high * inner);
        require(columns % taps == 0 && right.count / inner == columns / taps && right.count % inner == 0);
        if (turns) require(parts[0].count / rank == rows && parts[0].count % rank == 0);
    }
}

std::vector<float> Matrix::values(const std::vector<std::shared_ptr<Source>>& sources, const Target& target) const {
    std::vector<std::vector<float>> m;
    for (const Companion& part : parts) m.push_back(part.numbers(sources));
    std::vector<float> made;
    switch (form) {
        case product: made = multiplied(m[0], m[1], rows, columns, rank, target); break;
        case with_kernel: made = sds::with_kernel(m[0], m[1], rows, inner, columns, target); break;
        case turned_product:
            made = multiplied(transposed(m[0], rows, rank), sds::with_kernel(m[1], m[2], rank, inner, columns, target),
                              rows, columns, rank, target);
            break;
        case sparse: made = scattered(m[0], m[1], rows, columns); break;
        default: made = std::move(m[0]);
    }
    return turned ? transposed(made, columns, rows) : made;
}

void Place::check(uint64_t height, uint64_t width) const {
    require(rows && columns && rows <= kMost / columns && first <= rows && height <= rows - first && width <= columns);
}

void LowRank::check(const std::vector<std::shared_ptr<Source>>& sources) const {
    require(kind >= product && kind < kCount && rows && columns && rows <= kMost / columns);
    place.check(rows, columns);
    require(start <= place.rows * place.columns);
    left.check(sources);
    if (kind == product || kind == kronecker) right.check(sources);
    const uint64_t height = left.height(), width = left.width();
    switch (kind) {
        case product: require(height == rows && width == right.height() && right.width() == columns); break;
        case kronecker:
            require(rows % right.height() == 0 && rows / right.height() == height && columns % right.width() == 0 &&
                    columns / right.width() == width);
            break;
        case by_row: require(height == rows && width == 1); break;
        case by_column: require(height == 1 && columns % width == 0); break;
        default: require(height == rows && width == columns);
    }
}

void Multiplier::prepare(const std::shared_ptr<const LowRank>& what,
                         const std::vector<std::shared_ptr<Source>>& sources, const Target& target) {
    if (what_ == what) return;
    what_ = nullptr;
    left_ = what->left.values(sources, target);
    right_.clear();
    if (what->kind == LowRank::product || what->kind == LowRank::kronecker)
        right_ = what->right.values(sources, target);
    if (what->kind == LowRank::product) right_ = in_panels(right_, what->right.height(), what->right.width());
    what_ = what;
}

// The rest of a row of the tensor that has begun, whole rows, and the beginning of a last one.
const float* Multiplier::make(const Target& target, uint64_t first, uint64_t count) {
    if (out_.size() < count) out_.resize(count);
    const LowRank& what = *what_;
    const uint64_t stride = what.place.columns, top = what.place.first, bottom = top + what.rows;
    float* out = out_.data();
    uint64_t from = what.start + first;
    const uint64_t to = from + count;
    while (from < to) {
        const uint64_t row = from / stride, begin = from % stride, end = std::min(stride, begin + (to - from));
        uint64_t rows = begin == 0 && end == stride ? (to - from) / stride : 1;
        if (row < top) {
            rows = std::min(rows, top - row);
        } else if (row < bottom) {
            rows = std::min(rows, bottom - row);
        }
        const bool made = row >= top && row < bottom;
        const uint64_t last = made ? std::min(end, std::max(begin, what.columns)) : begin;
        if (last > begin) make_block(target, row - top, rows, begin, last, out, stride);
        for (uint64_t r = 0; r < rows && last < end; ++r)
            std::fill(out + r * stride + (last - begin), out + r * stride + (end - begin), 0.0f);
        from += rows * (end - begin);
        out += rows * (end - begin);
    }
    return out_.data();
}

void Multiplier::make_block(const Target& target, uint64_t row, uint64_t rows, uint64_t first, uint64_t last,
                            float* out, uint64_t stride) const {
    if (what_->kind != LowRank::product) {
        for (uint64_t r = 0; r < rows; ++r) {
            for (uint64_t c = first; c < last; ++c) out[r * stride + (c - first)] = element(row + r, c);
        }
        return;
    }
    const uint64_t rank = what_->left.width();
    for (uint64_t column = first; column < last;) {
        const uint64_t within = column % kPanel, width = std::min(last - column, kPanel - within);
        target.product(left_.data() + row * rank, rank, right_.data() + (column - within) * rank + within, kPanel, rows,
                       width, rank, out + (column - first), stride);
        column += width;
    }
}

float Multiplier::element(uint64_t row, uint64_t column) const {
    const LowRank& what = *what_;
    const uint64_t across = what.left.width();
    if (what.kind == LowRank::by_row) return left_[row];
    if (what.kind == LowRank::matrix) return left_[row * across + column];
    if (what.kind == LowRank::by_column) return left_[column / (what.columns / across)];
    const uint64_t height = what.right.height(), width = what.right.width();
    return left_[row / height * across + column / width] * right_[row % height * width + column % width];
}

}  // namespace sds
