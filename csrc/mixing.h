// What an adapter makes of all of a tensor, where an element depends on others of its column or row: blocks of rows
// that are rotated (OFT), one such step after the other over permuted rows (BOFT), inputs that go through two factors
// (GLoRA). A stage of its own: the whole tensor is in memory.
//
// Numeric rule: products are summed as those of low_rank.h, in float32, or float64 where the run computes in that. The
// rotation of a block B is R = (I + Q)(I − Q)⁻¹ with Q = B − Bᵀ, in float64 by Gaussian elimination without pivots, row
// by row (I ± Q has a positive definite symmetric part, so that no pivot is below 1), rounded once. A limit above 0
// bounds the norm of all of Q together, whose squares are added row by row, block by block.
// python/sdsurgery/definitions/mixing.py says the same in NumPy.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "low_rank.h"

namespace sds {

struct Mixing {
    enum Kind : int {
        rotation = 0,  // Rᵀ times each block of rows
        given,         // the same; the blocks are R themselves
        butterfly,     // of every level R times each block of rows, which lie apart by a power of two
        inputs,        // each row through left [inputs, r] and right [r, inputs], at every place of a kernel
        kCount
    } kind;
    uint64_t rows, columns;  // of the matrix, as the adapter knows it
    Place place;
    bool turned;    // the tensor has the transpose of it
    uint64_t size;  // of a block; of `inputs`: places of a kernel
    double limit;   // 0: none
    Matrix left;    // blocks one below the other: [levels · rows, size]
    Matrix right;   // of `inputs`

    // Throws `invalid` unless the factors fit, and lie within their sources.
    void check(const std::vector<std::shared_ptr<Source>>& sources) const;
};

// One with its factors in memory.
class Mixer {
 public:
    // Reads the factors. Throws as Source::read does.
    Mixer(std::shared_ptr<const Mixing> what, const std::vector<std::shared_ptr<Source>>& sources,
          const Target& target);

    uint64_t elements() const { return what_->place.rows * what_->place.columns; }

    // All elements of a tensor, changed where they lie.
    void mix(float* tensor) const;
    void mix(double* tensor) const;

 private:
    template <class T>
    void mix_all(T* tensor) const;
    template <class T>
    void mix_rows(T* matrix, uint64_t stride) const;
    template <class T>
    void mix_inputs(T* matrix, uint64_t stride) const;
    void multiply(const float* left, const float* right, uint64_t right_stride, uint64_t rows, uint64_t columns,
                  uint64_t rank, float* out) const;
    void multiply(const double* left, const double* right, uint64_t right_stride, uint64_t rows, uint64_t columns,
                  uint64_t rank, double* out) const;

    std::shared_ptr<const Mixing> what_;
    const Target& target_;
    std::vector<double> left_, right_;  // rotations, or factors
};

}  // namespace sds
