// A block of a product of two matrices. Included once per CPU target, behind elementwise.inl.h.
//
// A few rows and columns at a time are summed in registers, over the whole rank: one load of the right factor serves
// all rows, one number of the left all columns.

template <int Rows, int Vectors>
inline void product_block(const float* left, size_t left_stride, const float* right, size_t right_stride, size_t rank,
                          float* out, size_t out_stride) {
    constexpr size_t W = Lanes::width;
    Lanes sum[Rows][Vectors];
    for (int v = 0; v < Vectors; ++v) {
        const Lanes d = Lanes::read(right + v * W);
        for (int r = 0; r < Rows; ++r) sum[r][v] = Lanes::all(left[r * left_stride]) * d;
    }
    for (size_t k = 1; k < rank; ++k) {
        const float* const row = right + k * right_stride;
        Lanes d[Vectors];
        for (int v = 0; v < Vectors; ++v) d[v] = Lanes::read(row + v * W);
        for (int r = 0; r < Rows; ++r) {
            const Lanes u = Lanes::all(left[r * left_stride + k]);
            for (int v = 0; v < Vectors; ++v) sum[r][v] = sum[r][v] + u * d[v];
        }
    }
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) sum[r][v].write(out + r * out_stride + v * W);
    }
}

template <int Rows>
inline void product_rows(const float* left, size_t left_stride, const float* right, size_t right_stride, size_t columns,
                         size_t rank, float* out, size_t out_stride) {
    constexpr size_t W = Lanes::width;
    constexpr int wide = W == 16 ? 4 : 2;  // of 32 registers, or of 16
    size_t c = 0;
    for (; c + wide * W <= columns; c += wide * W)
        product_block<Rows, wide>(left, left_stride, right + c, right_stride, rank, out + c, out_stride);
    for (; c + W <= columns; c += W)
        product_block<Rows, 1>(left, left_stride, right + c, right_stride, rank, out + c, out_stride);
    for (; c < columns; ++c) {
        for (int r = 0; r < Rows; ++r) {
            float sum = left[r * left_stride] * right[c];
            for (size_t k = 1; k < rank; ++k) sum = sum + left[r * left_stride + k] * right[k * right_stride + c];
            out[r * out_stride + c] = sum;
        }
    }
}

// out [rows, columns] = left [rows, rank] · right [rank, columns]
inline void product(const float* left, size_t left_stride, const float* right, size_t right_stride, size_t rows,
                    size_t columns, size_t rank, float* out, size_t out_stride) {
    size_t r = 0;
    for (; r + 4 <= rows; r += 4)
        product_rows<4>(left + r * left_stride, left_stride, right, right_stride, columns, rank, out + r * out_stride,
                        out_stride);
    for (; r < rows; ++r)
        product_rows<1>(left + r * left_stride, left_stride, right, right_stride, columns, rank, out + r * out_stride,
                        out_stride);
}
