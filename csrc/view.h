// A strided window on a source: the elements of a transposed, sliced or expanded tensor, gathered into row-major order.
//
// The order in which the elements are visited is that of the file, not that of the result, so a large transposed tensor
// is walked in a few passes along its storage whatever the size of the piece that is asked for.
#pragma once

#include <cstdint>
#include <vector>

namespace sds {

class View {
 public:
    // `item` bytes an element (1, 2, 4 or 8); strides in elements. Throws Error(invalid) for anything else, for sizes
    // and strides of different number, and for extents beyond 60 bits. `start` elements in front are left out.
    View(uint64_t item, const std::vector<uint64_t>& sizes, const std::vector<uint64_t>& strides, uint64_t start);

    uint64_t item() const { return item_; }
    uint64_t elements() const { return elements_ - start_; }
    uint64_t reach() const { return reach_; }  // bytes from the first element's first to the last element's last

    // The bytes from `first` on, of the row-major image, to `out`, which must have room for an element on either side.
    // Returns where in `out` they begin. `mapped`: pages that were walked over are given back.
    const uint8_t* gather(const uint8_t* base, uint64_t first, uint64_t bytes, uint8_t* out, bool mapped) const;

 private:
    struct Dim {
        uint64_t size, stride, below;  // below: elements of the image in one step of this dimension
    };
    struct Walk;
    void elements_to(const uint8_t* base, uint64_t first, uint64_t count, uint8_t* out, bool mapped) const;

    uint64_t item_, start_, elements_ = 1, reach_ = 0;
    std::vector<Dim> dims_;  // outermost first; neighbours that lie evenly are one
};

}  // namespace sds
