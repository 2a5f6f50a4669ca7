#include "file.h"

#include <cstring>

namespace sds {

Mapping::Mapping(os::Handle file, uint64_t size, bool copy_on_write)
    : data_(os::map(file, size, copy_on_write)), size_(size), copy_on_write_(copy_on_write) {}

Mapping::~Mapping() { os::unmap(data_, size_); }

Source::Source(const std::string& path) : path_(path), file_(os::open_read(path)) {
    try {
        stat_ = os::stat(file_);
    } catch (...) {
        os::close(file_);
        throw;
    }
}

Source::Source(std::vector<uint8_t> bytes) : path_("(memory)"), bytes_(std::move(bytes)) { stat_.size = bytes_.size(); }

Source::~Source() { close(); }

void Source::close() noexcept {
    os::close(file_);
    os::close(direct_);
    file_ = direct_ = os::kNone;
    closed_ = true;
}

void Source::read(void* to, size_t bytes, uint64_t offset) const {
    if (closed_) throw Error(Code::invalid, path_ + ": the checkpoint is closed");
    if (in_memory()) {
        if (offset > bytes_.size() || bytes > bytes_.size() - offset) {
            throw Error(Code::truncated, path_ + ": a read past the end");
        }
        std::memcpy(to, bytes_.data() + offset, bytes);
        return;
    }
    size_t got = 0;
    try {
        got = os::read_at(file_, to, bytes, offset);
    } catch (const Error& error) {
        throw Error(error.code, path_ + ": " + error.what());
    }
    if (got != bytes) {
        throw Error(Code::truncated, path_ + ": the file ends at byte " + std::to_string(offset + got) + ", " +
                                         std::to_string(offset + bytes) + " expected (it is truncated, or shrank)");
    }
}

namespace {

struct Gathering {
    const View& view;
    const uint8_t* base;
    uint64_t first, bytes;
    uint8_t* out;
    bool mapped;
    const uint8_t* result = nullptr;

    static void run(void* context) {
        Gathering& self = *static_cast<Gathering*>(context);
        self.result = self.view.gather(self.base, self.first, self.bytes, self.out, self.mapped);
    }
};

}  // namespace

const uint8_t* Source::gather(const View& view, uint64_t offset, uint64_t first, uint64_t bytes, uint8_t* buffer) {
    const auto held = in_memory() ? nullptr : mapping();
    const uint64_t whole = view.elements() * view.item();
    if (offset > size() || view.reach() > size() - offset || first > whole || bytes > whole - first) {
        throw Error(Code::invalid, path_ + ": a read past the end of a tensor");
    }
    Gathering work{view, (held ? held->data() : memory()) + offset, first, bytes, buffer, held != nullptr};
    if (!os::guarded(Gathering::run, &work)) {
        throw Error(Code::truncated, path_ + ": the file shrank while it was being read");
    }
    return work.result;
}

std::shared_ptr<Mapping> Source::mapping(bool copy_on_write) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_ || in_memory()) throw Error(Code::invalid, path_ + ": cannot be mapped (closed)");
    if (copy_on_write) return std::make_shared<Mapping>(file_, stat_.size, true);
    auto shared = mapping_.lock();
    if (!shared) mapping_ = shared = std::make_shared<Mapping>(file_, stat_.size, false);
    return shared;
}

Io Source::resolve(Io wanted) const {
    if (in_memory() || stat_.size == 0) return Io::pread;
    if (wanted == Io::mmap && !os::can_guard()) return Io::pread;
    if (wanted != Io::automatic) return wanted;
    // A cached file is read where it lies. One that isn't is read past the cache: that is two to three times as fast
    // on a cold disk, and leaves the cache to whoever else is using it. A fault that has to wait for the disk brings
    // in less than a read does.
    const double cached = os::cached_share(file_, stat_.size);
    if (cached < 0.5) return Io::direct;
    return cached > 0.98 && os::maps_cheaply() && os::can_guard() ? Io::mmap : Io::pread;
}

os::Handle Source::direct() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!direct_tried_) {
        direct_tried_ = true;
        direct_ = os::open_past_cache(file_);
    }
    return direct_;
}

void Source::check_unchanged() const {
    if (in_memory()) return;
    const os::Stat now = os::stat(file_);
    if (now.size != stat_.size || now.mtime_ns != stat_.mtime_ns) {
        throw Error(Code::changed, path_ + ": the file changed while it was being read");
    }
}

Sink::Sink(const std::string& target, uint64_t size) : pending_(os::create_beside(target)), size_(size) {
    try {
        os::reserve(pending_, size);
    } catch (...) {
        os::discard(pending_);
        throw;
    }
}

Sink::~Sink() { abort(); }

void Sink::write(const void* from, size_t bytes, uint64_t offset) {
    if (pending_.file == os::kNone) throw Error(Code::invalid, "the output is closed");
    if (offset > size_ || bytes > size_ - offset) throw Error(Code::invalid, "a write past the end of the output");
    os::write_at(pending_.file, from, bytes, offset);
}

void Sink::read(void* to, size_t bytes, uint64_t offset) const {
    if (pending_.file == os::kNone) throw Error(Code::invalid, "the output is closed");
    if (os::read_at(pending_.file, to, bytes, offset) != bytes) throw Error(Code::io, "the output lost bytes");
}

void Sink::start_flush(uint64_t offset, uint64_t bytes) noexcept { os::start_flush(pending_.file, offset, bytes); }

void Sink::commit(bool replace, bool sync) {
    if (pending_.file == os::kNone) throw Error(Code::invalid, "the output is closed");
    os::publish(pending_, replace, sync);
    committed_ = true;
}

void Sink::abort() noexcept { os::discard(pending_); }

}  // namespace sds
