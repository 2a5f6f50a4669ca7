// The Python module _cuda: devices, memory, streams and the kernels of elementwise.cu. It can be imported on a machine
// without a GPU or driver, and then says why it is unavailable.
#include <cuda_runtime_api.h>

#include "../csrc/bind_program.h"
#include "launch.h"
#include "status.h"
#include "tensor_rows.h"

namespace py = pybind11;
using namespace sds;
using namespace sds::cuda;

namespace {

class DeviceGuard {  // restores the caller's current device
 public:
    explicit DeviceGuard(int device) {
        check(cudaGetDevice(&before_));
        if (device != before_) check(cudaSetDevice(device));
        device_ = device;
    }
    ~DeviceGuard() {
        if (device_ != before_) cudaSetDevice(before_);
    }
    DeviceGuard(const DeviceGuard&) = delete;

 private:
    int before_ = 0, device_ = 0;
};

void* pointer(uintptr_t address) { return reinterpret_cast<void*>(address); }

std::string unavailable() {
    int count = 0;
    const cudaError_t status = cudaGetDeviceCount(&count);
    if (status == cudaSuccess && count > 0) return "";
    cudaGetLastError();
    if (status == cudaErrorInsufficientDriver) {
        int driver = 0;
        if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "there is no NVIDIA driver";
        return "the NVIDIA driver is too old for this build (CUDA " + std::to_string(CUDART_VERSION / 1000) + ")";
    }
    if (status == cudaErrorNoDevice || status == cudaSuccess) return "there is no NVIDIA GPU";
    return cudaGetErrorString(status);
}

py::dict device_row(int device) {
    int major = 0, minor = 0, processors = 0;
    cudaDeviceProp properties;
    check(cudaGetDeviceProperties(&properties, device));
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device));
    py::dict row;
    row["number"] = device;
    row["name"] = std::string(properties.name);
    row["capability"] = std::to_string(major) + "." + std::to_string(minor);
    row["memory"] = static_cast<uint64_t>(properties.totalGlobalMem);
    row["multiprocessors"] = processors;
    return row;
}

class Memory {  // on a device
 public:
    Memory(int device, uint64_t bytes) : device_(device) {
        const DeviceGuard guard(device);
        check(cudaMalloc(&data_, bytes));
    }
    ~Memory() { free(); }
    Memory(const Memory&) = delete;
    void free() noexcept {
        if (data_ == nullptr) return;
        int before = 0;
        cudaGetDevice(&before);
        cudaSetDevice(device_);
        cudaFree(data_);
        cudaSetDevice(before);
        data_ = nullptr;
    }
    uintptr_t address() const { return reinterpret_cast<uintptr_t>(data_); }

 private:
    void* data_ = nullptr;
    int device_;
};

class Pinned {  // host memory that the devices read and write directly
 public:
    explicit Pinned(uint64_t bytes) : bytes_(bytes) { check(cudaHostAlloc(&data_, bytes, cudaHostAllocPortable)); }
    ~Pinned() { free(); }
    Pinned(const Pinned&) = delete;
    void free() noexcept {
        if (data_ != nullptr) cudaFreeHost(data_);
        data_ = nullptr;
    }
    void* data() const {
        if (data_ == nullptr) throw Error(Code::invalid, "the pinned memory is freed");
        return data_;
    }
    uint64_t bytes() const { return bytes_; }

 private:
    void* data_ = nullptr;
    uint64_t bytes_;
};

class Stream {
 public:
    explicit Stream(int device) : device_(device) {
        const DeviceGuard guard(device);
        check(cudaEventCreateWithFlags(&done_, cudaEventBlockingSync | cudaEventDisableTiming));
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    }
    ~Stream() {
        if (stream_ != nullptr) cudaStreamDestroy(stream_);
        if (done_ != nullptr) cudaEventDestroy(done_);
    }
    Stream(const Stream&) = delete;
    uintptr_t handle() const { return reinterpret_cast<uintptr_t>(stream_); }
    void copy(uintptr_t to, uintptr_t from, uint64_t bytes) {  // between any two memories
        const DeviceGuard guard(device_);
        check(cudaMemcpyAsync(pointer(to), pointer(from), bytes, cudaMemcpyDefault, stream_));
    }
    void clear(uintptr_t at, uint64_t bytes) {
        const DeviceGuard guard(device_);
        check(cudaMemsetAsync(pointer(at), 0, bytes, stream_));
    }
    void synchronize() {  // sleeps: the processor is for the threads that read and write meanwhile
        const DeviceGuard guard(device_);
        check(cudaEventRecord(done_, stream_));
        check(cudaEventSynchronize(done_));
    }

 private:
    cudaStream_t stream_ = nullptr;
    cudaEvent_t done_ = nullptr;
    int device_;
};

std::vector<DType> dtypes_from(const std::vector<int>& codes) {
    std::vector<DType> dtypes;
    for (int code : codes) dtypes.push_back(dtype_from(code));
    return dtypes;
}

// `addresses` is a buffer of uint64: for every row the output's address, the number of elements, the inputs' addresses.
void evaluate(int device, uintptr_t stream, const Program& program, std::vector<double> constants,
              const std::vector<int>& in, int out, int overflow, uintptr_t counts, const py::buffer& addresses) {
    const py::buffer_info info = addresses.request();
    const size_t stride = 2 + static_cast<size_t>(program.inputs);
    if (info.itemsize != 8 || info.ndim != 1 || static_cast<size_t>(info.size) % stride != 0)
        throw Error(Code::invalid, "rows are uint64: out, count, inputs");
    const uint64_t* words = static_cast<const uint64_t*>(info.ptr);
    std::vector<Row> rows;
    rows.reserve(static_cast<size_t>(info.size) / stride);
    for (size_t at = 0; at < static_cast<size_t>(info.size); at += stride)
        if (words[at + 1] != 0 || counts != 0) rows.push_back({words[at], words[at + 1], words + at + 2});
    const Numbers numbers(program, std::move(constants));
    const Launch launch{program,
                        numbers,
                        dtypes_from(in),
                        dtype_from(out),
                        static_cast<Overflow>(overflow),
                        static_cast<uint64_t*>(pointer(counts)),
                        pointer(stream)};
    const DeviceGuard guard(device);
    enqueue(launch, rows);
}

// Enqueues one formula over rows of tensors on the caller's stream.
void evaluate_rows(const TensorRows& rows, const Program& program, std::vector<double> constants, int overflow,
                   uintptr_t stream) {
    if (rows.device < 0) return;
    const DeviceGuard guard(rows.device);
    rows.enqueue_on(program, Numbers(program, std::move(constants)), static_cast<Overflow>(overflow), pointer(stream));
}

Element element_from(int code) {
    if (code < 0 || code >= kElements) throw Error(Code::invalid, "unknown dtype code");
    return static_cast<Element>(code);
}

void reduce(int device, uintptr_t stream, std::pair<uint64_t, int> a, std::pair<uint64_t, int> b, uint64_t count,
            uintptr_t scratch, uintptr_t out) {
    const DeviceGuard guard(device);
    enqueue_reduce({a.first, b.first, element_from(a.second), element_from(b.second), count, pointer(scratch),
                    pointer(out), pointer(stream)});
}

void products(int device, uintptr_t stream, uintptr_t terms, uint64_t count, uint64_t elements, uintptr_t scratch,
              uintptr_t out) {
    const DeviceGuard guard(device);
    enqueue_products(
        {static_cast<const Term*>(pointer(terms)), count, elements, pointer(scratch), pointer(out), pointer(stream)});
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
    m.doc() = "CUDA kernels of sdsurgery. Knows no tensor names.";

    static PyObject* error = PyErr_NewException("sdsurgery.kernels._cuda.Error", PyExc_RuntimeError, nullptr);
    m.attr("Error") = py::handle(error);
    py::register_local_exception_translator([](std::exception_ptr thrown) {
        const auto raise = [](const std::string& code, const std::string& message) {
            py::object value = py::handle(error)(message);
            value.attr("code") = code;
            PyErr_SetObject(error, value.ptr());
        };
        try {
            if (thrown) std::rethrow_exception(thrown);
        } catch (const CudaError& caught) {
            raise(caught.code, caught.what());
        } catch (const Error& caught) {
            raise("invalid", caught.what());
        }
    });

    py::class_<Program, std::shared_ptr<Program>>(m, "Program", py::module_local())
        .def(py::init(&make_program), py::arg("inputs"), py::arg("constants"), py::arg("steps"), py::arg("result"),
             py::arg("wide"), py::arg("stages") = py::tuple(), py::arg("made") = py::tuple(), py::arg("generated") = 0,
             py::arg("functions") = py::tuple())
        .def_property_readonly("fused", [](const Program& self) { return self.fused_sum(); });

    py::class_<Memory>(m, "Memory")
        .def(py::init<int, uint64_t>(), py::arg("device"), py::arg("bytes"))
        .def_property_readonly("address", &Memory::address)
        .def("free", &Memory::free);
    py::class_<Pinned>(m, "Pinned", py::buffer_protocol())
        .def(py::init<uint64_t>(), py::arg("bytes"), py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("address", [](const Pinned& self) { return reinterpret_cast<uintptr_t>(self.data()); })
        .def("free", &Pinned::free)
        .def_buffer([](Pinned& self) {
            return py::buffer_info(static_cast<uint8_t*>(self.data()), static_cast<py::ssize_t>(self.bytes()));
        });
    py::class_<Stream>(m, "Stream")
        .def(py::init<int>(), py::arg("device"))
        .def_property_readonly("handle", &Stream::handle)
        .def("copy", &Stream::copy, py::arg("to"), py::arg("source"), py::arg("bytes"),
             py::call_guard<py::gil_scoped_release>())
        .def("clear", &Stream::clear, py::arg("at"), py::arg("bytes"))
        .def("synchronize", &Stream::synchronize, py::call_guard<py::gil_scoped_release>());

    m.def("unavailable", &unavailable, "Why no device can be used; empty when one can.");
    m.def("devices", [] {
        py::list rows;
        int count = 0;
        if (unavailable().empty()) check(cudaGetDeviceCount(&count));
        for (int device = 0; device < count; ++device) rows.append(device_row(device));
        return rows;
    });
    m.def(
        "unsupported",
        [](const Program& program, const std::vector<int>& in, int out) {
            return unsupported(program, dtypes_from(in), dtype_from(out));
        },
        py::arg("program"), py::arg("inputs"), py::arg("out"));
    m.def("evaluate", &evaluate, py::arg("device"), py::arg("stream"), py::arg("program"), py::arg("constants"),
          py::arg("inputs"), py::arg("out"), py::arg("overflow"), py::arg("counts"), py::arg("rows"));
    py::class_<TensorRows>(m, "TensorRows")
        .def(py::init<const py::capsule&, const std::vector<py::type>&, const py::list&, int>(), py::arg("exchange"),
             py::arg("types"), py::arg("tensors"), py::arg("width"))
        .def_readonly("left", &TensorRows::left)
        .def_readonly("device", &TensorRows::device)
        .def("evaluate", &evaluate_rows, py::arg("program"), py::arg("constants"), py::arg("overflow"),
             py::arg("stream"), py::call_guard<py::gil_scoped_release>());
    m.def("reduce", &reduce, py::arg("device"), py::arg("stream"), py::arg("a"), py::arg("b"), py::arg("count"),
          py::arg("scratch"), py::arg("out"));
    m.def("reduce_scratch_bytes", &reduce_scratch_bytes, py::arg("count"));
    m.def("products", &products, py::arg("device"), py::arg("stream"), py::arg("terms"), py::arg("products"),
          py::arg("count"), py::arg("scratch"), py::arg("out"));
    m.def("product_scratch_bytes", &product_scratch_bytes, py::arg("products"), py::arg("count"));
    m.attr("architectures") = SDS_CUDA_ARCHITECTURES;
    m.attr("runtime") = CUDART_VERSION;
}
