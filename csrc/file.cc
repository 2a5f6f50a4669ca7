#include "file.h"

#include <algorithm>
#include <cstring>
#include <set>

namespace sds {

Mapping::Mapping(os::Handle file, uint64_t size, bool copy_on_write)
    : data_(os::map(file, size, copy_on_write)), size_(size), copy_on_write_(copy_on_write) {}

Mapping::~Mapping() { os::unmap(data_, size_); }

std::atomic<size_t> OpenFile::count{0};

namespace {

std::atomic<uint64_t> uses{0};
std::mutex sources_mutex;  // over the set; held while one of them lets go of its file, which locks that one

std::set<const Source*>& sources() {
    static auto* const all = new std::set<const Source*>;  // outlives every Source
    return *all;
}

}  // namespace

Source::Source(const std::string& path) : path_(path), reopened_by_(os::absolute(path)), in_memory_(false) {
    make_room();
    file_ = std::make_shared<OpenFile>(os::open_read(path));
    stat_ = os::stat(file_->handle);
    ctime_ns_ = stat_.ctime_ns;
    used_ = ++uses;
    std::lock_guard<std::mutex> lock(sources_mutex);
    sources().insert(this);
}

Source::~Source() {
    std::lock_guard<std::mutex> lock(sources_mutex);
    sources().erase(this);
}

bool Source::let_go() const noexcept {
    std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || !file_ || file_.use_count() > 1 || (direct_ && direct_.use_count() > 1)) return false;
    try {
        if (!os::stat(reopened_by_).is(stat_)) return false;  // its name is gone, or leads to another
    } catch (const std::exception&) {
        return false;
    }
    file_.reset();
    direct_.reset();
    direct_tried_ = false;
    return true;
}

void Source::make_room() {
    while (OpenFile::count >= os::most_open_files() / 2) {
        std::lock_guard<std::mutex> lock(sources_mutex);
        std::vector<const Source*> by_use(sources().begin(), sources().end());
        std::sort(by_use.begin(), by_use.end(), [](const Source* a, const Source* b) { return a->used_ < b->used_; });
        if (std::none_of(by_use.begin(), by_use.end(), [](const Source* source) { return source->let_go(); })) return;
    }
}

Source::Source(const std::vector<MemoryPiece>& pieces, std::shared_ptr<const void> owner)
    : path_("(memory)"), owner_(std::move(owner)), in_memory_(true) {
    for (const MemoryPiece& piece : pieces) {
        if (piece.bytes > 0) pieces_.emplace(stat_.size, piece);
        stat_.size += piece.bytes;
    }
}

const uint8_t* Source::memory(uint64_t offset, uint64_t bytes) const {
    if (bytes == 0) return nullptr;
    auto found = pieces_.upper_bound(offset);
    if (found != pieces_.begin()) {
        const auto& [begin, piece] = *--found;
        const uint64_t within = offset - begin;
        if (within < piece.bytes && bytes <= piece.bytes - within) return piece.data + within;
    }
    throw Error(Code::invalid, path_ + ": a read past the end");
}

void Source::close() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    file_.reset();
    direct_.reset();
    closed_ = true;
}

std::shared_ptr<const OpenFile> Source::opened() const {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (closed_) throw Error(Code::invalid, path_ + ": the checkpoint is closed");
        used_ = ++uses;
        if (file_ || in_memory_) return file_;
    }
    make_room();
    auto again = std::make_shared<OpenFile>(os::open_read(reopened_by_));
    const os::Stat now = os::stat(again->handle);
    if (!now.is(stat_)) throw Error(Code::changed, path_ + ": the file changed while it was being read");
    std::lock_guard<std::mutex> lock(mutex_);
    if (!file_) file_ = std::move(again);
    return file_;
}

void Source::read(void* to, size_t bytes, uint64_t offset) const {
    const auto file = opened();
    if (in_memory()) {
        auto* out = static_cast<uint8_t*>(to);
        auto piece = pieces_.upper_bound(offset);
        if (piece != pieces_.begin()) --piece;
        for (size_t got = 0; got < bytes; ++piece) {
            const uint64_t within = piece == pieces_.end() ? 0 : offset + got - piece->first;
            if (piece == pieces_.end() || within >= piece->second.bytes) {
                throw Error(Code::invalid, path_ + ": a read past the end");
            }
            const size_t part = std::min<uint64_t>(bytes - got, piece->second.bytes - within);
            std::memcpy(out + got, piece->second.data + within, part);
            got += part;
        }
        return;
    }
    size_t got = 0;
    try {
        got = os::read_at(file->handle, to, bytes, offset);
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
    const uint8_t* base = held ? held->data() + offset : memory(offset, view.reach());
    Gathering work{view, base, first, bytes, buffer, held != nullptr};
    if (!os::guarded(Gathering::run, &work)) {
        throw Error(Code::truncated, path_ + ": the file shrank while it was being read");
    }
    return work.result;
}

std::shared_ptr<Mapping> Source::mapping(bool copy_on_write) {
    const auto file = opened();
    if (in_memory()) throw Error(Code::invalid, path_ + ": cannot be mapped");
    if (copy_on_write) return std::make_shared<Mapping>(file->handle, stat_.size, true);
    std::lock_guard<std::mutex> lock(mutex_);
    auto shared = mapping_.lock();
    if (!shared) mapping_ = shared = std::make_shared<Mapping>(file->handle, stat_.size, false);
    return shared;
}

Io Source::resolve(Io wanted) const {
    if (in_memory() || stat_.size == 0) return Io::pread;
    if (wanted == Io::mmap && !os::can_guard()) return Io::pread;
    if (wanted != Io::automatic) return wanted;
    // A cached file is read where it lies. One that isn't is read past the cache: that is two to three times as fast
    // on a cold disk, and leaves the cache to other programs. A fault that has to wait for the disk brings
    // in less than a read does.
    const double cached = os::cached_share(opened()->handle, stat_.size);
    if (cached < 0.5) return Io::direct;
    return cached > 0.98 && os::maps_cheaply() && os::can_guard() ? Io::mmap : Io::pread;
}

std::shared_ptr<const OpenFile> Source::direct() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (direct_tried_ || closed_ || in_memory_) return direct_;
    }
    const auto file = opened();
    make_room();
    std::lock_guard<std::mutex> lock(mutex_);
    if (!direct_tried_ && !closed_) {
        direct_tried_ = true;
        const os::Handle handle = os::open_past_cache(file->handle);
        if (handle != os::kNone) direct_ = std::make_shared<OpenFile>(handle);
    }
    return direct_;
}

size_t Source::read_past_cache(void* to, size_t bytes, uint64_t offset) {
    const auto file = direct();
    return file ? os::read_past_cache(file->handle, to, bytes, offset) : 0;
}

void Source::set_tap(std::shared_ptr<Tap> tap) {
    std::lock_guard<std::mutex> lock(mutex_);
    tap_ = std::move(tap);
}

std::shared_ptr<Tap> Source::tap() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return tap_;
}

void Source::check_unchanged() const {
    if (in_memory()) return;
    const os::Stat now = os::stat(opened()->handle);
    if (now.size != stat_.size || now.mtime_ns != stat_.mtime_ns) {
        throw Error(Code::changed, path_ + ": the file changed while it was being read");
    }
}

bool Source::touched() const { return !in_memory() && os::stat(opened()->handle).ctime_ns != ctime_ns_; }

void Source::settle() {
    if (!in_memory()) ctime_ns_ = os::stat(opened()->handle).ctime_ns;
}

Sink::Sink(const std::string& target, uint64_t size) : size_(size), pending_(os::create_beside(target)) {
    leftovers_ = pending_.leftovers;
    try {
        os::reserve(pending_, size);
    } catch (...) {
        os::discard(pending_);
        throw;
    }
}

Sink::~Sink() { abort(); }

os::Handle Sink::open_file() const {
    if (pending_.file == os::kNone) throw Error(Code::invalid, "the output is closed");
    return pending_.file;
}

void Sink::write(const void* from, size_t bytes, uint64_t offset) {
    if (offset > size_ || bytes > size_ - offset) throw Error(Code::invalid, "a write past the end of the output");
    std::shared_lock<std::shared_mutex> lock(mutex_);
    os::write_at(open_file(), from, bytes, offset);
}

void Sink::read(void* to, size_t bytes, uint64_t offset) const {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    if (os::read_at(open_file(), to, bytes, offset) != bytes) throw Error(Code::io, "the output is too short");
}

std::shared_ptr<Mapping> Sink::mapping() const {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    return std::make_shared<Mapping>(open_file(), size_, false);
}

void Sink::start_flush(uint64_t offset, uint64_t bytes) noexcept {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    os::start_flush(pending_.file, offset, bytes);
}

void Sink::commit(bool replace, bool sync) {
    std::unique_lock<std::shared_mutex> lock(mutex_);
    open_file();
    os::publish(pending_, replace, sync);
    committed_ = true;
}

bool Sink::committed() const {
    std::shared_lock<std::shared_mutex> lock(mutex_);
    return committed_;
}

void Sink::abort() noexcept {
    std::unique_lock<std::shared_mutex> lock(mutex_);
    os::discard(pending_);
}

}  // namespace sds
