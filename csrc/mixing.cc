#include "mixing.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "targets.h"

namespace sds {

namespace {

// Blocks B of size × size, one behind the other, become Rᵀ.
void rotate(std::vector<double>& blocks, uint64_t size, double limit) {
    const uint64_t area = size * size;
    for (size_t first = 0; first < blocks.size(); first += area) {
        double* const b = blocks.data() + first;
        for (uint64_t i = 0; i < size; ++i) {
            for (uint64_t j = 0; j < i; ++j) {
                const double q = b[i * size + j] - b[j * size + i];
                b[i * size + j] = q;
                b[j * size + i] = -q;
            }
            b[i * size + i] = b[i * size + i] - b[i * size + i];  // 0, or NaN
        }
    }
    if (limit > 0) {
        double squares = 0;
        for (double q : blocks) squares += q * q;
        const double norm = std::sqrt(squares) + 1e-8, factor = std::min(norm, limit) / norm;
        for (double& q : blocks) q *= factor;
    }
    std::vector<double> a(area);
    for (size_t first = 0; first < blocks.size(); first += area) {
        // (I + Q) Y = I − Q: Y is Rᵀ
        double* const y = blocks.data() + first;
        for (uint64_t i = 0; i < area; ++i) {
            const double one = i % (size + 1) == 0 ? 1.0 : 0.0, q = y[i];
            a[i] = one + q;
            y[i] = one - q;
        }
        for (uint64_t k = 0; k < size; ++k) {
            for (uint64_t i = k + 1; i < size; ++i) {
                const double factor = a[i * size + k] / a[k * size + k];
                for (uint64_t j = k + 1; j < size; ++j) a[i * size + j] -= factor * a[k * size + j];
                for (uint64_t j = 0; j < size; ++j) y[i * size + j] -= factor * y[k * size + j];
            }
        }
        for (uint64_t k = size; k-- > 0;) {
            for (uint64_t j = 0; j < size; ++j) y[k * size + j] /= a[k * size + k];
            for (uint64_t i = 0; i < k; ++i) {
                const double factor = a[i * size + k];
                for (uint64_t j = 0; j < size; ++j) y[i * size + j] -= factor * y[k * size + j];
            }
        }
    }
}

void transpose(std::vector<double>& blocks, uint64_t size) {
    for (size_t first = 0; first < blocks.size(); first += size * size) {
        double* const b = blocks.data() + first;
        for (uint64_t i = 0; i < size; ++i) {
            for (uint64_t j = 0; j < i; ++j) std::swap(b[i * size + j], b[j * size + i]);
        }
    }
}

std::vector<double> widened(const std::vector<float>& values) { return {values.begin(), values.end()}; }

template <class T>
std::vector<T> rounded(const std::vector<double>& values) {
    std::vector<T> out(values.size());
    std::transform(values.begin(), values.end(), out.begin(), [](double x) { return static_cast<T>(x); });
    return out;
}

}  // namespace

void Mixing::check(const std::vector<std::shared_ptr<Source>>& sources) const {
    const auto require = [](bool holds) {
        if (!holds) throw Error(Code::invalid, "an adapter's factors do not fit");
    };
    require(kind >= rotation && kind < kCount && rows && columns && size);
    place.check(turned ? columns : rows, turned ? rows : columns);
    left.check(sources);
    if (kind == inputs) {
        right.check(sources);
        require(columns % size == 0 && left.height() == columns / size && right.width() == left.height() &&
                left.width() == right.height());
        return;
    }
    require(rows % size == 0 && left.width() == size && left.height() % rows == 0);
    const uint64_t levels = left.height() / rows;
    require(kind == butterfly ? size % 2 == 0 && levels < 40 && rows % (size << (levels - 1)) == 0 : levels == 1);
}

Mixer::Mixer(std::shared_ptr<const Mixing> what, const std::vector<std::shared_ptr<Source>>& sources,
             const Target& target)
    : what_(std::move(what)), target_(target), left_(widened(what_->left.values(sources, target))) {
    if (what_->kind == Mixing::inputs) {
        right_ = widened(what_->right.values(sources, target));
        return;
    }
    if (what_->kind != Mixing::given) rotate(left_, what_->size, what_->limit);
    if (what_->kind != Mixing::rotation) transpose(left_, what_->size);
}

void Mixer::mix(float* tensor) const { mix_all(tensor); }
void Mixer::mix(double* tensor) const { mix_all(tensor); }

template <class T>
void Mixer::mix_all(T* tensor) const {
    const Mixing& what = *what_;
    const uint64_t stride = what.place.columns;
    T* const at = tensor + what.place.first * stride;
    const auto mix_matrix = [&](T* matrix, uint64_t wide) {
        what.kind == Mixing::inputs ? mix_inputs(matrix, wide) : mix_rows(matrix, wide);
    };
    if (!what.turned) return mix_matrix(at, stride);
    std::vector<T> matrix(what.rows * what.columns);
    for (uint64_t i = 0; i < what.rows; ++i) {
        for (uint64_t j = 0; j < what.columns; ++j) matrix[i * what.columns + j] = at[j * stride + i];
    }
    mix_matrix(matrix.data(), what.columns);
    for (uint64_t i = 0; i < what.rows; ++i) {
        for (uint64_t j = 0; j < what.columns; ++j) at[j * stride + i] = matrix[i * what.columns + j];
    }
}

// Block by block of `size` rows, which are neighbours, or (of a butterfly's level l) taken in turn from both halves of
// 2ˡ·size rows.
template <class T>
void Mixer::mix_rows(T* matrix, uint64_t stride) const {
    const Mixing& what = *what_;
    const uint64_t size = what.size, columns = what.columns;
    const std::vector<T> turns = rounded<T>(left_);
    std::vector<T> block(size * columns), out(size * columns);
    std::vector<uint64_t> rows(size);
    for (uint64_t first = 0; first < turns.size() / size; first += size) {
        const uint64_t level = first / what.rows, half = (size << level) / 2;
        for (uint64_t i = 0; i < size; ++i) {
            const uint64_t row = first % what.rows + i, within = row % (2 * half);
            rows[i] = what.kind == Mixing::butterfly ? row - within + within % 2 * half + within / 2 : row;
            std::copy_n(matrix + rows[i] * stride, columns, block.data() + i * columns);
        }
        multiply(turns.data() + first * size, block.data(), columns, size, columns, size, out.data());
        for (uint64_t i = 0; i < size; ++i) std::copy_n(out.data() + i * columns, columns, matrix + rows[i] * stride);
    }
}

template <class T>
void Mixer::mix_inputs(T* matrix, uint64_t stride) const {
    const Mixing& what = *what_;
    const uint64_t taps = what.size, inputs = what.columns / taps, rank = what.left.width();
    const uint64_t most = std::max<uint64_t>(1, 64 / taps);  // rows at a time
    const std::vector<T> left = rounded<T>(left_), right = rounded<T>(right_);
    std::vector<T> lines(most * taps * inputs), narrow(most * taps * rank), out(most * taps * inputs);
    for (uint64_t row = 0; row < what.rows; row += most) {
        const uint64_t rows = std::min(most, what.rows - row);
        const auto each = [&](auto visit) {
            for (uint64_t r = 0; r < rows; ++r) {
                for (uint64_t i = 0; i < inputs; ++i) {
                    for (uint64_t t = 0; t < taps; ++t)
                        visit((r * taps + t) * inputs + i, matrix[(row + r) * stride + i * taps + t]);
                }
            }
        };
        each([&](uint64_t at, T& element) { lines[at] = element; });
        multiply(lines.data(), left.data(), rank, rows * taps, rank, inputs, narrow.data());
        multiply(narrow.data(), right.data(), inputs, rows * taps, inputs, rank, out.data());
        each([&](uint64_t at, T& element) { element = out[at]; });
    }
}

void Mixer::multiply(const float* left, const float* right, uint64_t right_stride, uint64_t rows, uint64_t columns,
                     uint64_t rank, float* out) const {
    target_.product(left, rank, right, right_stride, rows, columns, rank, out, columns);
}

void Mixer::multiply(const double* left, const double* right, uint64_t right_stride, uint64_t rows, uint64_t columns,
                     uint64_t rank, double* out) const {
    for (uint64_t r = 0; r < rows; ++r) {
        double* const line = out + r * columns;
        for (uint64_t c = 0; c < columns; ++c) line[c] = left[r * rank] * right[c];
        for (uint64_t k = 1; k < rank; ++k) {
            for (uint64_t c = 0; c < columns; ++c) line[c] += left[r * rank + k] * right[k * right_stride + c];
        }
    }
}

}  // namespace sds
