// Encoded weights: float32 from codes and scales, decoded in the loop. One description covers scaled fp8, int8, and the
// 4-bit and block formats; python/sdsurgery/encodings/ recognises them in files and definitions/decoding.py says the
// same in NumPy.
//
// A weight is a matrix of rows × columns. Its code stands for a value; blocks of the matrix share a scale:
//     W = value(code) · scale        (float32, rounded once)
// A scale is stored as it is, or made of several numbers, each operation rounded to float32 by itself:
//     scale[i] = stored[i] · times[i / per] + plus
// Then, where the format has them: `factor`, a second multiplication; `rotation`, below; a multiplication by column.
//
// Rotation: groups of G = 4^k columns are multiplied by H/√G, H = H₄ ⊗ … ⊗ H₄, by butterflies in float64, the fastest
// digit first. Codes whose scale is the same along a row are rotated before it is applied, so that their sums are
// exact.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "dtypes.h"

namespace sds {

class Source;
class View;
struct Target;

enum class Coding : int { e4m3 = 0, e5m2, i8, nf4, fp4, e2m1, i4, kCount };
inline bool is_packed(Coding codes) { return codes >= Coding::nf4; }  // two in a byte
const float* packed_values(Coding codes);                             // of a packed coding, the sixteen numbers

// Numbers beside the codes: `count` of them from byte `offset` of a source on.
struct Companion {
    enum Kind : int { f32 = 0, f16, bf16, e4m3, e8m0, u8, f64, e5m2, i16, i32, i64, kCount } kind;  // u8: of a map too
    uint32_t source;
    uint64_t offset, count;
    std::shared_ptr<const View> view = nullptr;  // of numbers that do not lie one behind the other

    uint64_t item() const;
    uint64_t bytes() const { return count * item(); }
    void check(const Source& from) const;  // throws `invalid` unless they lie within it
    std::vector<float> numbers(const std::vector<std::shared_ptr<Source>>& sources) const;  // each rounded once
};

struct Encoding {
    Coding codes;
    bool low_first;           // of two codes in a byte the first is the lower one
    uint64_t rows, columns;   // of the weights
    uint64_t stored_columns;  // of the codes: rows may be padded
    uint64_t start;           // elements left out in front
    uint64_t block_rows, block_columns;
    Companion scales;  // row by row; or tiled: padded to tiles of 128 × 4, each in the order of a tensor core
    bool tiled;
    std::optional<Companion> map, times, by_column;
    uint64_t per;
    float plus;      // 0: none
    float factor;    // 1: none
    uint32_t group;  // G of a rotation; 1: none
    uint64_t inner;  // elements between two columns that are rotated together (of a convolution's kernel)

    uint64_t elements() const { return rows * columns - start; }
    uint64_t stored_row_bytes() const { return is_packed(codes) ? (stored_columns + 1) / 2 : stored_columns; }
    uint64_t stored_bytes() const { return rows * stored_row_bytes(); }
    uint64_t grid_columns() const { return (columns + block_columns - 1) / block_columns; }
    uint64_t tile_columns() const { return (stored_columns + block_columns - 1) / block_columns; }
    bool rotates_codes() const { return group > 1 && block_columns >= columns; }

    // Throws `invalid` unless it makes sense and every number that it needs lies within its source.
    void check(const std::vector<std::shared_ptr<Source>>& sources) const;
};

// Decodes stretches of one weight after the other; remembers the scales of the last.
class Decoder {
 public:
    // Reads the scales, unless they are known from the last call. Throws as Source::read does.
    void prepare(const std::shared_ptr<const Encoding>& encoding, const std::vector<std::shared_ptr<Source>>& sources);

    struct Range {
        uint64_t first, bytes;
    };
    // The codes of `count` elements from element `first` on, as bytes behind the weight's first.
    Range range(uint64_t first, uint64_t count) const;

    uint8_t* room(uint64_t bytes);  // where they may be read to

    // Float32 of the elements whose codes `codes` has. It reads only memory that it was given or that is its own.
    const float* decode(const Target& target, const uint8_t* codes, uint64_t first, uint64_t count);

 private:
    float scale_at(uint64_t row, uint64_t column) const;
    void decode_row(const Target& target, const uint8_t* codes, uint64_t begin, uint64_t row, uint64_t from,
                    uint64_t to, float* out);
    void rotate_row(uint64_t row, float* values);

    std::shared_ptr<const Encoding> encoding_;
    std::vector<float> scales_, by_column_;
    std::vector<uint8_t> raw_;
    std::vector<float> out_;
};

}  // namespace sds
