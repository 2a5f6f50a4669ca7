// Rows of tensors as a caller has them (an output and its inputs), read through DLPack: no Python call for a tensor, so
// that a state dict of a thousand is launched sooner than a GPU has merged it.
//
// Only what needs no care is taken: dense tensors of one shape and order (row-major, or all in the same other one) on
// one device, in dtypes that the kernels know, whose output lies apart from the inputs or exactly on one. `left` are
// the numbers of the other rows.
#pragma once

#include <dlpack/dlpack.h>

#include <algorithm>
#include <map>
#include <vector>

#include "../csrc/bind_program.h"
#include "launch.h"

#ifndef SDS_DEVICE_TYPE  // tests/fake_cuda has another
#define SDS_DEVICE_TYPE kDLCUDA
#endif

namespace sds {
namespace cuda {

class TensorRows {
 public:
    // `tensors`: out, inputs, out, inputs, … (`width` for each row); `types`: those that `exchange` belongs to.
    TensorRows(const pybind11::capsule& exchange, const std::vector<pybind11::type>& types,
               const pybind11::list& tensors, int width)
        : width_(static_cast<size_t>(width)) {
        if (width < 2 || tensors.size() % width_ != 0) throw Error(Code::invalid, "rows are an output and its inputs");
        api_ = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(exchange.ptr(), "dlpack_exchange_api"));
        if (api_ == nullptr) throw pybind11::error_already_set();
        const bool known =
            api_->header.version.major == DLPACK_MAJOR_VERSION && api_->dltensor_from_py_object_no_sync != nullptr;
        std::vector<DLTensor> row(width_);
        for (size_t number = 0; number < tensors.size() / width_; ++number) {
            bool readable = known;
            for (size_t k = 0; readable && k < width_; ++k) {
                PyObject* item = PyList_GET_ITEM(tensors.ptr(), static_cast<Py_ssize_t>(number * width_ + k));
                readable = read(item, types, row[k]);
            }
            if (!readable || !take(row)) left.push_back(number);
        }
        settle();
    }

    std::vector<size_t> left;
    int device = -1;  // of all rows that were taken

    void enqueue_on(const Program& program, const Numbers& numbers, Overflow overflow, void* stream) const {
        for (const Batch& batch : batches_) {
            const std::vector<DType> in(batch.dtypes.begin() + 1, batch.dtypes.end());
            enqueue({program, numbers, in, batch.dtypes[0], overflow, nullptr, stream}, batch.rows);
        }
    }

 private:
    struct Taken {
        std::vector<DType> dtypes;        // of the output and the inputs
        std::vector<uint64_t> addresses;  // the same
        uint64_t count;

        uint64_t end(size_t k) const { return addresses[k] + count * size_of(dtypes[k]); }
        bool operator==(const Taken& other) const {
            return dtypes == other.dtypes && addresses == other.addresses && count == other.count;
        }
    };
    struct Batch {
        std::vector<DType> dtypes;
        std::vector<Row> rows;
    };

    bool read(PyObject* item, const std::vector<pybind11::type>& types, DLTensor& to) const {
        const auto same = [item](const pybind11::type& type) {
            return type.ptr() == reinterpret_cast<PyObject*>(Py_TYPE(item));
        };
        if (std::none_of(types.begin(), types.end(), same)) return false;
        if (api_->dltensor_from_py_object_no_sync(item, &to) == 0) return true;
        PyErr_Clear();
        return false;
    }

    static int dtype_of(const DLTensor& tensor) {  // -1: none that the kernels know
        if (tensor.dtype.lanes != 1) return -1;
        const int kind = tensor.dtype.code << 8 | tensor.dtype.bits;
        switch (kind) {
            case kDLFloat << 8 | 64: return static_cast<int>(DType::f64);
            case kDLFloat << 8 | 32: return static_cast<int>(DType::f32);
            case kDLFloat << 8 | 16: return static_cast<int>(DType::f16);
            case kDLBfloat << 8 | 16: return static_cast<int>(DType::bf16);
            case kDLFloat8_e4m3fn << 8 | 8: return static_cast<int>(DType::e4m3);
            case kDLFloat8_e5m2 << 8 | 8: return static_cast<int>(DType::e5m2);
            default: return -1;
        }
    }

    static bool row_major(const DLTensor& tensor) {
        int64_t expected = 1;
        for (int d = tensor.ndim - 1; tensor.strides != nullptr && d >= 0; --d) {
            if (tensor.shape[d] != 1 && tensor.strides[d] != expected) return false;
            expected *= tensor.shape[d];
        }
        return true;
    }

    // Without gaps and overlaps, in whatever order: channels last, or transposed.
    static bool dense(const DLTensor& tensor) {
        std::vector<std::pair<int64_t, int64_t>> steps;  // stride, size
        for (int d = 0; d < tensor.ndim; ++d)
            if (tensor.shape[d] != 1) steps.emplace_back(tensor.strides[d], tensor.shape[d]);
        std::sort(steps.begin(), steps.end());
        int64_t expected = 1;
        for (const auto& step : steps) {
            if (step.first != expected) return false;
            expected *= step.second;
        }
        return true;
    }

    static bool same_order(const std::vector<DLTensor>& row) {
        if (std::all_of(row.begin(), row.end(), row_major)) return true;
        for (const DLTensor& tensor : row) {
            if (tensor.strides == nullptr) return false;
            for (int d = 0; d < tensor.ndim; ++d)
                if (tensor.shape[d] != 1 && tensor.strides[d] != row[0].strides[d]) return false;
        }
        return dense(row[0]);
    }

    bool take(const std::vector<DLTensor>& row) {
        Taken found;
        found.count = 1;
        const int dimensions = row[0].ndim;
        for (int d = 0; d < dimensions; ++d) found.count *= static_cast<uint64_t>(row[0].shape[d]);
        // A tensor that is the negative of its memory (torch's view of a conjugate's imaginary part) does not show
        // here, and can be dense only when it is a single element.
        if (found.count == 1) return false;
        for (const DLTensor& tensor : row) {
            const int dtype = dtype_of(tensor);
            if (dtype < 0 || tensor.device.device_type != SDS_DEVICE_TYPE) return false;
            if (tensor.device.device_id != (device < 0 ? row[0].device.device_id : device)) return false;
            if (tensor.ndim != dimensions) return false;
            if (!std::equal(tensor.shape, tensor.shape + dimensions, row[0].shape)) return false;
            const uint64_t address = reinterpret_cast<uint64_t>(tensor.data) + tensor.byte_offset;
            if (address % size_of(static_cast<DType>(dtype)) != 0) return false;
            found.dtypes.push_back(static_cast<DType>(dtype));
            found.addresses.push_back(address);
        }
        if (found.count != 0 && !same_order(row)) return false;
        for (size_t k = 1; k < width_; ++k) {
            const bool apart = found.end(k) <= found.addresses[0] || found.end(0) <= found.addresses[k];
            const bool in_place = found.addresses[k] == found.addresses[0] && found.dtypes[k] == found.dtypes[0];
            if (!apart && !in_place) return false;
        }
        device = row[0].device.device_id;
        if (found.count != 0) taken_.push_back(std::move(found));
        return true;
    }

    // Rows of equal dtypes go together, unless one row writes what another one reads or writes: then they go one by
    // one, in order, as on the CPU. A row that is there twice (tied weights under two names) is done once.
    void settle() {
        std::vector<size_t> by_output(taken_.size());
        for (size_t i = 0; i < by_output.size(); ++i) by_output[i] = i;
        std::stable_sort(by_output.begin(), by_output.end(),
                         [this](size_t a, size_t b) { return taken_[a].addresses[0] < taken_[b].addresses[0]; });
        const auto twice = [this](size_t a, size_t b) { return taken_[a] == taken_[b]; };
        by_output.erase(std::unique(by_output.begin(), by_output.end(), twice), by_output.end());
        bool apart = true;
        for (size_t i = 0; i + 1 < by_output.size(); ++i)
            apart &= taken_[by_output[i]].end(0) <= taken_[by_output[i + 1]].addresses[0];
        for (size_t i = 0; apart && i < by_output.size(); ++i) {
            const Taken& row = taken_[by_output[i]];
            for (size_t k = 1; k < width_; ++k) {
                // The outputs lie apart, so the first one that ends behind the input's start decides, or its own does.
                auto next = std::partition_point(by_output.begin(), by_output.end(),
                                                 [&](size_t j) { return taken_[j].end(0) <= row.addresses[k]; });
                if (next != by_output.end() && *next == by_output[i]) ++next;
                apart &= next == by_output.end() || taken_[*next].addresses[0] >= row.end(k);
            }
        }
        std::sort(by_output.begin(), by_output.end());
        std::map<std::vector<DType>, size_t> batch_of;
        for (size_t i : by_output) {
            const Taken& row = taken_[i];
            const auto place = batch_of.emplace(row.dtypes, batches_.size());
            if (place.second || !apart) {
                place.first->second = batches_.size();
                batches_.push_back({row.dtypes, {}});
            }
            batches_[place.first->second].rows.push_back({row.addresses[0], row.count, row.addresses.data() + 1});
        }
    }

    const size_t width_;
    const DLPackExchangeAPI* api_ = nullptr;
    std::vector<Taken> taken_;  // no longer changed once the batches point into it
    std::vector<Batch> batches_;
};

}  // namespace cuda
}  // namespace sds
