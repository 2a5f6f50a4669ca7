// What an adapter's factors make of a tensor, computed where it is needed: products of two low-rank factors, Kronecker
// products, and numbers of each row or column. Never a whole tensor in memory; the factors of one layer are.
//
// Numeric rule: an element of a product is summed over the rank from its first term on, ((u₀d₀ + u₁d₁) + u₂d₂) + …,
// each product and each sum rounded to float32 by itself. python/sdsurgery/definitions/products.py says the same in
// NumPy.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "encoding.h"

namespace sds {

// A matrix of float32, made of stored ones.
struct Matrix {
    enum Form : int {
        stored = 0,      // parts[0], row by row
        product,         // parts: [rows, rank] · [rank, columns]
        with_kernel,     // parts: Σⱼ core[i, j, tap] · right[j, q] of a core [rows, inner, taps], right [inner, q]
        turned_product,  // parts: the transpose of [rank, rows], then that of a core [rank, inner, taps] and right
        sparse,          // parts: rows and columns of some elements [2, n], their values [n]; equal places add up
        kCount
    } form;
    uint64_t rows, columns;  // of what the form makes
    uint64_t rank, inner;    // where the form has them
    std::vector<Companion> parts;
    bool turned = false;  // the matrix is the transpose of what the form makes

    uint64_t height() const { return turned ? columns : rows; }
    uint64_t width() const { return turned ? rows : columns; }

    void check(const std::vector<std::shared_ptr<Source>>& sources) const;
    std::vector<float> values(const std::vector<std::shared_ptr<Source>>& sources, const Target& target) const;
};

// Where a matrix lies in a tensor of `rows` × `columns`: in some rows from `first` on, and the first columns.
struct Place {
    uint64_t first, rows, columns;

    void check(uint64_t height, uint64_t width) const;  // throws `invalid` unless a matrix of that size fits
};

struct LowRank {
    enum Kind : int {
        product = 0,  // left [rows, rank] · right [rank, columns]
        kronecker,    // left ⊗ right
        by_row,       // left [rows, 1]
        by_column,    // left [1, n], each for columns/n columns
        matrix,       // left
        kCount
    } kind;
    uint64_t rows, columns;  // of what is made
    Place place;             // zeros lie around it
    uint64_t start;          // elements of the tensor left out in front
    Matrix left, right;

    uint64_t elements() const { return place.rows * place.columns - start; }

    // Throws `invalid` unless the factors fit, and lie within their sources.
    void check(const std::vector<std::shared_ptr<Source>>& sources) const;
};

// Computes stretches of one tensor after the other; remembers the factors of the last.
class Multiplier {
 public:
    // Reads the factors, unless they are known from the last call. Throws as Source::read does.
    void prepare(const std::shared_ptr<const LowRank>& what, const std::vector<std::shared_ptr<Source>>& sources,
                 const Target& target);

    // `count` elements of the tensor from element `first` on, row by row.
    const float* make(const Target& target, uint64_t first, uint64_t count);

 private:
    // `rows` rows, or columns `first` to `last` of one, to `out`, whose rows are `stride` elements apart.
    void make_block(const Target& target, uint64_t row, uint64_t rows, uint64_t first, uint64_t last, float* out,
                    uint64_t stride) const;
    float element(uint64_t row, uint64_t column) const;  // of the other kinds

    std::shared_ptr<const LowRank> what_;
    std::vector<float> left_, right_, out_;
};

}  // namespace sds
