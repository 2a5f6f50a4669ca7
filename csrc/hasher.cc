#include "hasher.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <system_error>

#include "threads.h"

namespace sds {

namespace {

constexpr uint64_t kStretch = 256 << 10;  // of one stream at a time: those of three fit into the L2 cache
constexpr uint64_t kTaps = 24 << 20, kTapLeast = 4 << 20;  // their windows: all together; each, however many
constexpr uint64_t kReleased = 16 << 20;                   // of a mapping, given back together
constexpr auto kPause = std::chrono::milliseconds(1);      // until the watermark is looked at again

}  // namespace

struct Hasher::Stream {
    std::shared_ptr<Source> source;  // empty: the sink's
    uint64_t position = 0, end = 0;
    std::shared_ptr<Mapping> mapping;  // empty where reading is better
    std::shared_ptr<Tap> tap;          // of a file that the run reads past the page cache
    const uint8_t* tapped = nullptr;   // the next stretch, where the tap has it
    uint64_t released = 0;             // of the mapping
    uint64_t ready = 0;                // how many bytes the next stretch has
    bool taken = false;
    Sha256 sha = {};
};

Hasher::Hasher(std::vector<std::shared_ptr<Source>> files, std::shared_ptr<Sink> sink, int64_t body_begin, bool map,
               const std::string& target)
    : sink_(std::move(sink)), target_(hash_target_named(target)) {
    map = map && os::maps_cheaply() && os::can_guard();
    bool tapped = false;
    for (std::shared_ptr<Source>& file : files) {
        auto stream = std::make_unique<Stream>();
        stream->end = file->size();
        const Io io = file->resolve(Io::automatic);
        try {
            if (map && io == Io::mmap) stream->mapping = file->mapping();
        } catch (const Error&) {  // file systems that can't map files
        }
        if (sink_ && io == Io::direct && file->can_read_past_cache())
            file->set_tap(stream->tap = std::make_shared<Tap>(file->size(), std::max(kTaps / files.size(), kTapLeast)));
        tapped |= stream->tap != nullptr;
        stream->source = std::move(file);
        streams_.push_back(std::move(stream));
    }
    digests_.resize(streams_.size());
    if (sink_ && body_begin >= 0) {
        auto stream = std::make_unique<Stream>();
        stream->position = stream->released = static_cast<uint64_t>(body_begin);
        stream->end = std::max(sink_->size(), stream->position);
        try {
            if (map) stream->mapping = sink_->mapping();
        } catch (const Error&) {
        }
        streams_.push_back(std::move(stream));
    }
    const unsigned streams = static_cast<unsigned>(streams_.size()), processors = os::usable_cpus();
    threads_wanted_ = std::min(streams, processors);
    // From a cold disk the workers wait more than they work.
    threads_while_writing_ = tapped ? threads_wanted_ : std::max(1u, processors / 2);
}

Hasher::~Hasher() {
    cancel();
    for (const auto& stream : streams_) {
        if (stream->tap && stream->source->tap() == stream->tap) stream->source->set_tap(nullptr);
    }
}

void Hasher::start() {
    std::lock_guard<std::mutex> starting(threads_mutex_);
    std::lock_guard<std::mutex> lock(mutex_);
    if (started_) throw Error(Code::invalid, "a hasher starts once");
    started_ = true;
    for (const auto& stream : streams_) {
        if (stream->mapping && !guard_) guard_.emplace();
    }
    threads_.reserve(threads_wanted_);
    try {
        while (running_ < threads_wanted_) {
            const unsigned number = running_;
            threads_.push_back(started([this, number] { work(number); }));
            ++running_;
        }
        for (const auto& stream : streams_) {
            if (stream->tap) stream->tap->open();
        }
    } catch (const std::system_error&) {  // no more threads can be started
        if (running_ == 0) throw Error(Code::memory, "the system cannot start a thread for hashing");
        threads_wanted_ = running_;
    }
}

bool Hasher::wait(double seconds) {
    std::unique_lock<std::mutex> lock(mutex_);
    return ended_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return running_ == 0; });
}

void Hasher::cancel() noexcept {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        cancelled_ = stop_ = true;
        freed_.notify_all();
        stopped_.notify_all();
        close_taps();
    }
    join();
}

// No worker must wait for a thread that has ended.
void Hasher::close_taps() {
    for (const auto& stream : streams_) {
        if (stream->tap) stream->tap->close();
    }
}

void Hasher::join() {
    std::lock_guard<std::mutex> joining(threads_mutex_);
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    guard_.reset();
}

unsigned Hasher::processors() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return std::min(threads_wanted_, threads_while_writing_);
}

std::vector<std::string> Hasher::files() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return digests_;
}

std::string Hasher::body() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return body_digest_;
}

void Hasher::finish() {
    join();
    std::lock_guard<std::mutex> lock(mutex_);
    if (error_) throw *error_;
    if (out_of_memory_) throw Error(Code::memory, "out of memory for hashing");
    if (cancelled_) throw Error(Code::cancelled, "cancelled");
    for (size_t i = 0; i < streams_.size(); ++i) {
        if (streams_[i]->source) streams_[i]->source->check_unchanged();
        (i < digests_.size() ? digests_[i] : body_digest_) = hex(streams_[i]->sha.digest(target_));
    }
}

// Called where an exception was caught on a thread, which another one would end the process on.
void Hasher::fail(const Error& error) noexcept {
    try {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!error_) error_ = std::make_unique<Error>(error);
    } catch (const std::bad_alloc&) {
    }
    fail_for_memory();  // which counts only when there is no error
}

void Hasher::fail_for_memory() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    out_of_memory_ = stop_ = true;
    freed_.notify_all();
    stopped_.notify_all();
    close_taps();
}

void Hasher::work(unsigned number) {
    try {
        std::vector<std::vector<uint8_t>> buffers(HashTarget::kMost);
        for (;;) {
            bool over = false;
            const std::vector<Stream*> streams = take(number, over);
            if (over) break;
            if (streams.empty()) continue;
            advance(streams, buffers);
            std::lock_guard<std::mutex> lock(mutex_);
            for (Stream* stream : streams) stream->taken = false;
            --busy_;
            freed_.notify_all();
        }
    } catch (const Error& error) {
        fail(error);
    } catch (const std::bad_alloc&) {
        fail_for_memory();
    }
    std::lock_guard<std::mutex> lock(mutex_);
    --running_;
    ended_.notify_all();
}

// The streams that this thread hashes a stretch of next; none after a pause in which nothing could be taken.
std::vector<Hasher::Stream*> Hasher::take(unsigned number, bool& over) {
    std::unique_lock<std::mutex> lock(mutex_);
    std::vector<Stream*> ready;
    bool left = false;
    const uint64_t watermark = sink_ ? sink_->watermark() : 0;
    const bool writing = sink_ && watermark < sink_->size();
    for (const auto& stream : streams_) {
        left |= stream->taken || stream->position < stream->end;
        if (stream->taken || stream->position == stream->end) continue;
        stream->ready = std::min(kStretch, stream->end - stream->position);
        if (!stream->source && watermark < stream->position + stream->ready) continue;
        if (stream->tap) {
            const Tap::Next next = stream->tap->next(stream->ready, writing);
            if (next.bytes == 0) continue;
            stream->ready = next.bytes;
            stream->tapped = next.data;
        }
        ready.push_back(stream.get());
    }
    over = stop_ || !left;
    if (over) return {};
    const unsigned allowed = writing ? std::min(threads_wanted_, threads_while_writing_) : threads_wanted_;
    if (number >= allowed) {
        stopped_.wait_for(lock, kPause);
        return {};
    }
    if (ready.empty()) {
        freed_.wait_for(lock, kPause);
        return {};
    }
    // An equal share for each thread that is free to take one.
    const size_t idle = allowed > busy_ ? allowed - busy_ : 1;
    ready.resize(std::min((ready.size() + idle - 1) / idle, HashTarget::kMost));
    for (Stream* stream : ready) stream->taken = true;
    ++busy_;
    return ready;
}

namespace {

struct Hashing {
    const HashTarget& target;
    Sha256::Piece pieces[HashTarget::kMost] = {};
    size_t count = 0;

    static void run(void* context) {
        Hashing& self = *static_cast<Hashing*>(context);
        Sha256::update(self.target, self.pieces, self.count);
    }
};

}  // namespace

void Hasher::advance(const std::vector<Stream*>& streams, std::vector<std::vector<uint8_t>>& buffers) {
    Hashing work{target_};
    bool mapped = false;
    for (size_t i = 0; i < streams.size(); ++i) {
        Stream& stream = *streams[i];
        const uint8_t* data;
        if (stream.mapping) {
            data = stream.mapping->data() + stream.position;
            mapped = true;
        } else if (stream.tapped) {
            data = stream.tapped;
        } else {
            buffers[i].resize(kStretch);
            if (stream.source) {
                stream.source->read(buffers[i].data(), stream.ready, stream.position);
            } else {
                sink_->read(buffers[i].data(), stream.ready, stream.position);
            }
            data = buffers[i].data();
        }
        work.pieces[work.count++] = {&stream.sha, data, stream.ready};
    }
    if (!mapped) {
        Hashing::run(&work);
    } else if (!os::guarded(Hashing::run, &work)) {
        for (Stream* stream : streams) {
            if (stream->source) stream->source->check_unchanged();
        }
        throw Error(Code::truncated, "a file can no longer be read for its hash");
    }
    for (Stream* stream : streams) {
        stream->position += stream->ready;
        if (stream->tap) stream->tap->advance(stream->ready);
        if (stream->mapping && (stream->position - stream->released >= kReleased || stream->position == stream->end)) {
            os::release_pages(stream->mapping->data() + stream->released, stream->position - stream->released);
            stream->released = stream->position;
        }
    }
}

}  // namespace sds
