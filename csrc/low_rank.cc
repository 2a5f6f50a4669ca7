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

// [rows, columns] of a matrix that is stored as [columns, rows].
std::vector<float> turned(const std::vector<float>& from, uint64_t rows, uint64_t columns) {
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
    const auto require = [](bool holds) {
        if (!holds) throw Error(Code::invalid, "an adapter's factors do not fit");
    };
    require(form >= stored && form < kCount && rows && columns && rows <= kMost / columns);
    static const size_t wanted[] = {1, 1, 2, 2, 3};
    require(parts.size() == wanted[form]);
    for (const Companion& part : parts) {
        require(part.kind >= Companion::f32 && part.kind <= Companion::bf16 && part.source < sources.size() &&
                part.count <= kMost);
        const uint64_t size = sources[part.source]->size();
        require(part.offset <= size && part.bytes() <= size - part.offset);
    }
    if (form == stored || form == transposed) {
        require(parts[0].count == rows * columns);
    } else if (form == product) {
        require(rank && rank <= kMost && parts[0].count / rank == rows && parts[0].count % rank == 0 &&
                parts[1].count / rank == columns && parts[1].count % rank == 0);
    } else {
        const bool turns = form == turned_product;
        const uint64_t height = turns ? rank : rows;
        const Companion &core = parts[turns ? 1 : 0], &right = parts[turns ? 2 : 1];
        require(height && inner && height <= kMost && inner <= kMost / height && core.count);
        require(core.count % (height * inner) == 0);
        const uint64_t taps = core.count / (height * inner);
        require(columns % taps == 0 && right.count / inner == columns / taps && right.count % inner == 0);
        if (turns) require(parts[0].count / rank == rows && parts[0].count % rank == 0);
    }
}

std::vector<float> Matrix::values(const std::vector<std::shared_ptr<Source>>& sources, const Target& target) const {
    std::vector<std::vector<float>> m;
    for (const Companion& part : parts) m.push_back(part.numbers(sources));
    switch (form) {
        case transposed: return turned(m[0], rows, columns);
        case product: return multiplied(m[0], m[1], rows, columns, rank, target);
        case with_kernel: return sds::with_kernel(m[0], m[1], rows, inner, columns, target);
        case turned_product:
            return multiplied(turned(m[0], rows, rank), sds::with_kernel(m[1], m[2], rank, inner, columns, target),
                              rows, columns, rank, target);
        default: return m[0];
    }
}

void LowRank::check(const std::vector<std::shared_ptr<Source>>& sources) const {
    const auto require = [](bool holds) {
        if (!holds) throw Error(Code::invalid, "an adapter's factors do not fit");
    };
    require(kind >= product && kind < kCount && rows && columns && rows <= kMost / columns && start <= rows * columns);
    left.check(sources);
    if (kind == product || kind == kronecker) right.check(sources);
    switch (kind) {
        case product: require(left.rows == rows && left.columns == right.rows && right.columns == columns); break;
        case kronecker:
            require(rows % right.rows == 0 && rows / right.rows == left.rows && columns % right.columns == 0 &&
                    columns / right.columns == left.columns);
            break;
        case by_row: require(left.rows == rows && left.columns == 1); break;
        default: require(left.rows == 1 && columns % left.columns == 0);
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
    if (what->kind == LowRank::product) right_ = in_panels(right_, what->right.rows, what->right.columns);
    what_ = what;
}

const float* Multiplier::make(const Target& target, uint64_t first, uint64_t count) {
    const uint64_t from = what_->start + first;
    if (out_.size() < count) out_.resize(count);
    if (what_->kind == LowRank::product) {
        make_product(target, from, from + count);
    } else {
        uint64_t row = from / what_->columns, column = from % what_->columns;
        for (uint64_t i = 0; i < count; ++i) {
            out_[i] = element(row, column);
            if (++column == what_->columns) {
                column = 0;
                ++row;
            }
        }
    }
    return out_.data();
}

// The rest of a row that has begun, whole rows, and the beginning of a last one.
void Multiplier::make_product(const Target& target, uint64_t from, uint64_t to) {
    const uint64_t columns = what_->columns, rank = what_->left.columns;
    float* out = out_.data();
    while (from < to) {
        const uint64_t row = from / columns, first = from % columns, last = std::min(columns, first + (to - from));
        const uint64_t rows = first == 0 && last == columns ? (to - from) / columns : 1;
        for (uint64_t column = first; column < last;) {
            const uint64_t within = column % kPanel, width = std::min(last - column, kPanel - within);
            target.product(left_.data() + row * rank, rank, right_.data() + (column - within) * rank + within, kPanel,
                           rows, width, rank, out + (column - first), columns);
            column += width;
        }
        from += rows * (last - first);
        out += rows * (last - first);
    }
}

float Multiplier::element(uint64_t row, uint64_t column) const {
    const LowRank& what = *what_;
    if (what.kind == LowRank::by_row) return left_[row];
    if (what.kind == LowRank::by_column) return left_[column / (what.columns / what.left.columns)];
    const uint64_t height = what.right.rows, width = what.right.columns;
    return left_[row / height * what.left.columns + column / width] * right_[row % height * width + column % width];
}

}  // namespace sds
