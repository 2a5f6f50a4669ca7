#include "engine.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>

namespace sds {

namespace {

constexpr uint64_t kPage = 4096;
// Of output: large enough that a system call is cheap, small enough that the tile is still in the cache when it is
// written. Much larger writes are faster on some machines and five times slower on virtual ones, where the large pages
// that they ask for have to be fetched from the host.
constexpr uint64_t kTile = 512 << 10;
constexpr uint64_t kChunk = 256 << 10;    // of one operand: read, used and overwritten while in L2
constexpr uint64_t kColdChunk = 1 << 20;  // a cold disk wants long reads, and several in flight
constexpr uint64_t kColdBudget = 40 << 20;
constexpr unsigned kColdWorkers = 8;    // that many, however few the processors
constexpr uint64_t kReleaseEvery = 16;  // tiles
constexpr uint64_t kFlushStretch = 32 << 20;

class PageBuffer {
 public:
    explicit PageBuffer(size_t bytes) : raw_(bytes + kPage) {
        const uintptr_t at = reinterpret_cast<uintptr_t>(raw_.data());
        data_ = raw_.data() + (kPage - at % kPage) % kPage;
    }
    uint8_t* data() { return data_; }

 private:
    std::vector<uint8_t> raw_;
    uint8_t* data_;
};

}  // namespace

struct Run::Buffers {
    Buffers(uint64_t tile_bytes, uint64_t chunk_bytes, size_t operands) : out(tile_bytes) {
        for (size_t k = 0; k < operands; ++k) in.emplace_back(chunk_bytes + 2 * kPage);
    }
    PageBuffer out;
    std::vector<PageBuffer> in;
    Scratch scratch;
    Reduction reduction;  // of the chunk in work
};

Run::Run(std::vector<std::shared_ptr<Source>> sources, std::vector<std::shared_ptr<Program>> programs,
         std::vector<Fill> fills, std::vector<Job> jobs, std::vector<Check> checks,
         const std::vector<std::pair<uint64_t, uint64_t>>& sums, std::shared_ptr<Sink> sink, RunOptions options)
    : sources_(std::move(sources)),
      programs_(std::move(programs)),
      fills_(std::move(fills)),
      jobs_(std::move(jobs)),
      checks_(std::move(checks)),
      windows_(sources_.size()),
      sink_(std::move(sink)),
      options_(options),
      target_(target_named(options.target)) {
    worker_count_ = options_.threads ? options_.threads : std::min(os::usable_cpus(), 32u);
    if (options_.tile_bytes == 0) options_.tile_bytes = kTile;
    options_.tile_bytes = (options_.tile_bytes + kPage - 1) / kPage * kPage;
    uint64_t reached = 0;
    for (size_t i = 0; i < jobs_.size(); ++i) {
        const Job& job = jobs_[i];
        const auto refuse = [&](const char* why) { throw Error(Code::invalid, why, static_cast<int64_t>(i)); };
        if (job.kind == Job::reduce && (sink_ || job.operands.size() != 2))
            refuse("a reduction has two operands and no output");
        if (job.count > (UINT64_MAX >> 4) || job.out_offset > (UINT64_MAX >> 1)) refuse("a job is too large");
        if (job.out_offset < reached) refuse("jobs are not in the order of their output");
        reached = job.out_end();
        if (sink_ && reached > sink_->size()) refuse("a job writes past the end of the output");
        if (job.kind == Job::copy && job.operands.size() != 1) refuse("a copy has one operand");
        if (job.kind == Job::evaluate) {
            if (job.index >= programs_.size()) refuse("a job names no program");
            if (job.operands.size() != static_cast<size_t>(programs_[job.index]->inputs)) refuse("wrong operand count");
        }
        if (job.kind == Job::fill && job.index >= fills_.size()) refuse("a job names no fill rule");
        if (job.kind != Job::copy && job.kind != Job::reduce && job.out_offset % job.element_bytes() != 0)
            refuse("an output tensor is misaligned");
        for (size_t k = 0; k < job.operands.size(); ++k) admit(job, k, i);
        most_operands_ = std::max(most_operands_, job.operands.size());
        reductions_.add_job(job.kind == Job::reduce ? job.count : 0);
    }
    if (!jobs_.empty()) {
        begin_ = jobs_.front().out_offset;
        end_ = reached;
        first_tile_ = begin_ / options_.tile_bytes;
        tiles_ = end_ > begin_ ? (end_ + options_.tile_bytes - 1) / options_.tile_bytes - first_tile_ : 0;
    }
    prepare_sums(sums);
    watermark_ = begin_;
    finished_.resize(tiles_);
    tallies_.resize(jobs_.size());
    chunk_bytes_ = kChunk;
    bool cold = false;
    for (const auto& source : sources_) {
        const Io io = source->resolve(options_.io);
        io_.push_back(io == Io::direct && source->direct() == os::kNone ? Io::pread : io);
        mappings_.push_back(io == Io::mmap ? source->mapping() : nullptr);
        cold |= io_.back() == Io::direct;
    }
    if (cold) {
        worker_count_ = std::max(worker_count_, kColdWorkers);
        const uint64_t share = kColdBudget / worker_count_;
        const uint64_t left = share > options_.tile_bytes ? share - options_.tile_bytes : 0;
        chunk_bytes_ =
            std::max(kChunk, std::min(kColdChunk, left / std::max<size_t>(1, most_operands_) / kPage * kPage));
    }
    worker_count_ = static_cast<unsigned>(std::max<uint64_t>(1, std::min<uint64_t>(worker_count_, tiles_)));
}

// Checks an operand against its source, which it maps when the operand is strided.
void Run::admit(const Job& job, size_t k, size_t job_index) {
    const JobOperand& operand = job.operands[k];
    const auto refuse = [&](const char* why) { throw Error(Code::invalid, why, static_cast<int64_t>(job_index)); };
    if (operand.source >= sources_.size()) refuse("a job names no source");
    Source& source = *sources_[operand.source];
    if (job.kind == Job::evaluate && static_cast<int>(operand.element) >= kDTypes)
        refuse("a formula reads floats only");
    uint64_t bytes = job.count * job.operand_bytes(k);
    if (operand.view) {
        if (job.kind != Job::copy && operand.view->item() != job.operand_bytes(k)) refuse("wrong element size");
        if (bytes > operand.view->elements() * operand.view->item()) refuse("a job reads past the end of a tensor");
        bytes = operand.view->reach();
        if (!source.in_memory() && !windows_[operand.source]) windows_[operand.source] = source.mapping();
    }
    if (operand.offset > source.size() || bytes > source.size() - operand.offset)
        refuse("a job reads past the end of a source");
}

void Run::prepare_sums(const std::vector<std::pair<uint64_t, uint64_t>>& sums) {
    size_t job = 0;
    for (size_t i = 0; i < sums.size(); ++i) {
        const auto [offset, bytes] = sums[i];
        out_sums_.emplace_back(offset, offset + bytes);
        while (job < jobs_.size() && jobs_[job].out_offset < offset) ++job;
        for (; job < jobs_.size() && jobs_[job].out_offset < offset + bytes; ++job) {
            if (jobs_[job].out_end() > offset + bytes) throw Error(Code::invalid, "a job leaves its summed range");
            jobs_[job].sum = static_cast<int32_t>(i);
        }
    }
    for (size_t i = 0; i < checks_.size(); ++i) {
        const Check& check = checks_[i];
        check_sums_.emplace_back(check.offset, check.offset + check.bytes);
        uint64_t reached = check.offset;
        for (const auto& [part, k] : check.parts) {
            if (part >= jobs_.size() || k >= jobs_[part].operands.size()) throw Error(Code::invalid, "no such operand");
            JobOperand& operand = jobs_[part].operands[k];
            if (operand.source != check.source || operand.offset != reached || operand.view || operand.check >= 0)
                throw Error(Code::invalid, "a check's parts do not follow each other");
            operand.check = static_cast<int32_t>(i);
            reached += jobs_[part].count * jobs_[part].operand_bytes(k);
        }
        if (reached != check.offset + check.bytes) throw Error(Code::invalid, "a check's parts do not fill it");
    }
}

std::vector<uint32_t> Run::sums() const {
    std::vector<uint32_t> values;
    for (const RangeSum& sum : out_sums_) values.push_back(sum.value());
    return values;
}

std::vector<size_t> Run::damaged() const {
    std::vector<size_t> found;
    for (size_t i = 0; i < checks_.size(); ++i) {
        if (check_sums_[i].complete() && check_sums_[i].value() != checks_[i].crc) found.push_back(i);
    }
    return found;
}

Run::~Run() {
    cancel();
    for (std::thread& thread : threads_) thread.join();
    if (flusher_.joinable()) flusher_.join();
}

uint64_t Run::buffer_bytes() const {
    return worker_count_ * (options_.tile_bytes + kPage + most_operands_ * (chunk_bytes_ + 3 * kPage));
}

void Run::start() {
    running_ = worker_count_;
    for (unsigned i = 0; i < worker_count_; ++i) threads_.emplace_back([this] { work(); });
    if (options_.start_flushing && sink_) flusher_ = std::thread([this] { flush_behind(); });
}

bool Run::wait(double seconds) {
    std::unique_lock<std::mutex> lock(mutex_);
    return ended_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return running_ == 0; });
}

void Run::cancel() noexcept {
    std::lock_guard<std::mutex> lock(mutex_);
    cancelled_ = true;
    stop_ = true;
    changed_.notify_all();
}

void Run::finish() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    if (flusher_.joinable()) flusher_.join();
    if (error_) throw *error_;
    if (cancelled_) throw Error(Code::cancelled, "cancelled");
    for (const auto& source : sources_) source->check_unchanged();
}

void Run::fail(const Error& error) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!error_) error_ = std::make_unique<Error>(error);
    stop_ = true;
}

void Run::work() {
    const os::IeeeMode ieee;
    try {
        Buffers buffers(options_.tile_bytes, chunk_bytes_, most_operands_);
        while (!stop_) {
            const uint64_t tile = next_tile_++;
            if (tile >= tiles_) break;
            do_tile(tile, buffers);
        }
    } catch (const Error& error) {
        fail(error);
    } catch (const std::bad_alloc&) {
        fail(Error(Code::io, "out of memory for the workers' buffers"));
    }
    std::lock_guard<std::mutex> lock(mutex_);
    --running_;
    ended_.notify_all();
    changed_.notify_all();
}

void Run::do_tile(uint64_t tile, Buffers& buffers) {
    const uint64_t base = (first_tile_ + tile) * options_.tile_bytes;
    const uint64_t low = std::max(base, begin_), high = std::min(base + options_.tile_bytes, end_);
    auto job = std::upper_bound(jobs_.begin(), jobs_.end(), low,
                                [](uint64_t at, const Job& candidate) { return at < candidate.out_end(); });
    uint64_t reached = low;
    for (; job != jobs_.end() && job->out_offset < high; ++job) {
        if (job->count == 0) continue;
        const uint64_t from = std::max(job->out_offset, low), to = std::min(job->out_end(), high);
        if (job->kind == Job::reduce) {
            do_chunks(static_cast<size_t>(job - jobs_.begin()), from - job->out_offset, to - job->out_offset, buffers);
            continue;
        }
        if (from > reached) std::memset(buffers.out.data() + (reached - base), 0, from - reached);  // padding
        const uint64_t unit = job->element_bytes();
        uint8_t* const out = buffers.out.data() + (from - base);
        do_stretch(static_cast<size_t>(job - jobs_.begin()), (from - job->out_offset) / unit, (to - from) / unit, out,
                   buffers);
        // A copy's bytes may have been summed as its operand's already.
        if (job->sum >= 0 && !(job->kind == Job::copy && job->operands[0].check >= 0))
            out_sums_[static_cast<size_t>(job->sum)].add(crc32(0, out, to - from), to - from, to);
        reached = to;
    }
    if (sink_ && high > reached) std::memset(buffers.out.data() + (reached - base), 0, high - reached);
    if (sink_) sink_->write(buffers.out.data() + (low - base), high - low, low);
    tile_done(tile, high - low);
}

namespace {

struct Evaluation {
    const Target& target;
    const Job& job;
    const Program* program;
    Operand operands[Program::kMaxInputs];
    uint8_t* out;
    uint64_t count;
    Overflow policy;
    Tally tally;
    Scratch& scratch;
    Reduction& reduction;
    uint32_t crcs[Program::kMaxInputs] = {};  // of the operands' bytes, where they are checked

    static void run(void* context) {
        Evaluation& self = *static_cast<Evaluation*>(context);
        for (size_t k = 0; k < self.job.operands.size(); ++k) {
            if (self.job.operands[k].check < 0) continue;
            self.crcs[k] = crc32(0, self.operands[k].data, self.count * self.job.operand_bytes(k));
        }
        if (self.job.kind == Job::copy) {
            if (self.out != self.operands[0].data) std::memcpy(self.out, self.operands[0].data, self.count);
        } else if (self.job.kind == Job::reduce) {
            self.target.reduce(self.job.operands[0].element, self.operands[0].data, self.job.operands[1].element,
                               self.operands[1].data, self.count, self.reduction);
        } else {
            self.target.evaluate(*self.program, self.operands, self.out, self.job.out_dtype, self.count, self.policy,
                                 self.tally, self.scratch);
        }
    }
};

}  // namespace

// `count` elements of one job from element `first` on, to `out`.
void Run::do_stretch(size_t job_index, uint64_t first, uint64_t count, uint8_t* out, Buffers& buffers) {
    const Job& job = jobs_[job_index];
    if (job.kind == Job::fill) {
        target_.fill(fills_[job.index], first, out, job.out_dtype, count);
        return;
    }
    uint64_t widest = 1;
    bool mapped = false;
    for (size_t k = 0; k < job.operands.size(); ++k) {
        widest = std::max(widest, job.operand_bytes(k));
        mapped |= io_[job.operands[k].source] == Io::mmap;
    }
    uint64_t most = chunk_bytes_ / widest;
    if (job.kind == Job::reduce) most -= most % kReduceBlock;
    for (uint64_t done = 0; done < count;) {
        const uint64_t now = std::min(most, count - done);
        Evaluation work{target_,
                        job,
                        nullptr,
                        {},
                        out ? out + done * job.element_bytes() : nullptr,
                        now,
                        options_.overflow,
                        {},
                        buffers.scratch,
                        buffers.reduction};
        if (job.kind == Job::evaluate) work.program = programs_[job.index].get();
        try {
            for (size_t k = 0; k < job.operands.size(); ++k) {
                const JobOperand& operand = job.operands[k];
                const uint64_t unit = job.operand_bytes(k);
                const uint64_t at = (first + done) * unit;
                if (job.kind == Job::copy && is_read(operand)) {  // to where it is written from
                    sources_[operand.source]->read(work.out, now * unit, operand.offset + at);
                    work.operands[k] = {work.out, operand.dtype()};
                    continue;
                }
                work.operands[k] = {fetch(operand, at, now * unit, buffers.in[k].data()), operand.dtype()};
            }
        } catch (const Error& error) {
            throw Error(error.code, error.what(), static_cast<int64_t>(job_index));
        }
        if (!mapped) {
            Evaluation::run(&work);
        } else if (!os::guarded(Evaluation::run, &work)) {
            for (const JobOperand& operand : job.operands) sources_[operand.source]->check_unchanged();
            throw Error(Code::truncated, "an input cannot be read any more", static_cast<int64_t>(job_index));
        }
        for (size_t k = 0; k < job.operands.size(); ++k) {
            if (job.operands[k].check < 0) continue;
            const uint64_t unit = job.operand_bytes(k);
            const uint64_t end = job.operands[k].offset + (first + done + now) * unit;
            checked(job.operands[k], work.crcs[k], end, now * unit, job_index);
            if (job.kind == Job::copy && job.sum >= 0)
                out_sums_[static_cast<size_t>(job.sum)].add(work.crcs[k], now, job.out_offset + first + done + now);
        }
        if (work.tally.nonfinite || work.tally.overflow) {
            if (options_.refuse_nonfinite && work.tally.nonfinite) {
                throw Error(Code::nonfinite, "NaN or Inf", static_cast<int64_t>(job_index));
            }
            if (options_.refuse_overflow && work.tally.overflow) {
                throw Error(Code::overflow, "overflow", static_cast<int64_t>(job_index));
            }
            std::lock_guard<std::mutex> lock(mutex_);
            tallies_[job_index].nonfinite += work.tally.nonfinite;
            tallies_[job_index].overflow += work.tally.overflow;
        }
        done += now;
    }
}

// The chunks of a reduction that begin between these bytes of its range: whole ones, wherever the tile ends.
void Run::do_chunks(size_t job_index, uint64_t low, uint64_t high, Buffers& buffers) {
    const Job& job = jobs_[job_index];
    const uint64_t span = kReduceChunk * job.element_bytes();
    for (uint64_t chunk = (low + span - 1) / span; chunk * span < high; ++chunk) {
        if (stop_) return;
        const uint64_t first = chunk * kReduceChunk;
        buffers.reduction = {};
        do_stretch(job_index, first, std::min<uint64_t>(kReduceChunk, job.count - first), nullptr, buffers);
        std::lock_guard<std::mutex> lock(mutex_);
        reductions_.chunk_done(job_index, chunk, buffers.reduction);
    }
}

// Takes note of the CRC-32 of an operand's `bytes` before `end` of its source.
void Run::checked(const JobOperand& operand, uint32_t crc, uint64_t end, uint64_t bytes, size_t job_index) {
    const size_t index = static_cast<size_t>(operand.check);
    RangeSum& sum = check_sums_[index];
    if (sum.add(crc, bytes, end) && options_.refuse_damaged && sum.value() != checks_[index].crc) {
        throw Error(Code::damaged,
                    sources_[operand.source]->path() + ": damaged: the bytes from " +
                        std::to_string(checks_[index].offset) + " on differ from the CRC-32 that the file states",
                    static_cast<int64_t>(job_index));
    }
}

// Where `bytes` of an operand from its byte `first` on can be read: in the mapping, or in `buffer` after a read.
// Whether the operand's bytes come by ordinary positioned reads.
bool Run::is_read(const JobOperand& operand) const {
    return !operand.view && !sources_[operand.source]->in_memory() && io_[operand.source] == Io::pread;
}

const uint8_t* Run::fetch(const JobOperand& operand, uint64_t first, uint64_t bytes, uint8_t* buffer) {
    Source& source = *sources_[operand.source];
    if (operand.view) return source.gather(*operand.view, operand.offset, first, bytes, buffer);
    const uint64_t offset = operand.offset + first;
    if (source.in_memory()) return source.memory() + offset;
    if (mappings_[operand.source]) return mappings_[operand.source]->data() + offset;
    // At the offset's own place within a page: the kernel copies between equally aligned pages twice as fast.
    const uint64_t within = offset % kPage;
    if (io_[operand.source] == Io::direct) {
        const uint64_t whole = (within + bytes + kPage - 1) / kPage * kPage;
        if (os::read_past_cache(source.direct(), buffer, whole, offset - within) >= within + bytes)
            return buffer + within;
        // Not possible here, or the file shrank: the ordinary read decides.
    }
    source.read(buffer + within, bytes, offset);
    return buffer + within;
}

void Run::tile_done(uint64_t tile, uint64_t bytes) {
    bytes_done_ += bytes;
    // Whole mappings, now and then: a fault maps the pages around it too (all of a large page), so a piece that is
    // released by itself comes back with its neighbour. What another worker still needs is mapped again at no great
    // cost.
    if (tile % kReleaseEvery == 0) {
        for (const auto& mapping : mappings_) {
            if (mapping) os::release_pages(mapping->data(), mapping->size());
        }
    }
    std::lock_guard<std::mutex> lock(mutex_);
    finished_[tile] = true;
    uint64_t mark = watermark_ == begin_ ? 0 : (watermark_ / options_.tile_bytes) - first_tile_;
    if (!finished_[mark]) return;
    while (mark < tiles_ && finished_[mark]) ++mark;
    watermark_ = std::min(end_, (first_tile_ + mark) * options_.tile_bytes);
    changed_.notify_all();
}

void Run::flush_behind() {
    uint64_t flushed = begin_;
    std::unique_lock<std::mutex> lock(mutex_);
    while (running_ > 0) {
        changed_.wait(lock, [&] { return running_ == 0 || watermark_ >= flushed + kFlushStretch; });
        if (stop_) return;
        const uint64_t upto = watermark_;
        lock.unlock();
        sink_->start_flush(flushed, upto - flushed);
        flushed = upto;
        lock.lock();
    }
}

Tally apply(const Program& program, const std::vector<Operand>& operands, uint8_t* out, DType out_dtype, uint64_t count,
            Overflow policy, unsigned threads, const std::string& target_name) {
    const Target& target = target_named(target_name);
    if (operands.size() != static_cast<size_t>(program.inputs)) throw Error(Code::invalid, "wrong operand count");
    // The careful path reads the inputs a second time, so a result that replaces its input waits in a buffer.
    bool in_place = false;
    for (const Operand& operand : operands) {
        const uint8_t* end = operand.data + count * size_of(operand.dtype);
        in_place |= operand.data < out + count * size_of(out_dtype) && out < end;
    }
    constexpr uint64_t kStretch = 16384;
    const uint64_t stretches = (count + kStretch - 1) / kStretch;
    if (threads == 0) threads = os::usable_cpus();
    threads = static_cast<unsigned>(std::max<uint64_t>(1, std::min<uint64_t>(threads, stretches / 8)));
    std::atomic<uint64_t> next{0};
    std::mutex mutex;
    Tally total;
    const auto work = [&] {
        const os::IeeeMode ieee;
        Scratch scratch;
        Tally tally;
        std::vector<uint8_t> buffer(in_place ? kStretch * size_of(out_dtype) : 0);
        std::vector<Operand> here(operands);
        for (uint64_t stretch = next++; stretch < stretches; stretch = next++) {
            const uint64_t first = stretch * kStretch, n = std::min(kStretch, count - first);
            for (size_t k = 0; k < operands.size(); ++k)
                here[k].data = operands[k].data + first * size_of(operands[k].dtype);
            uint8_t* to = out + first * size_of(out_dtype);
            target.evaluate(program, here.data(), in_place ? buffer.data() : to, out_dtype, n, policy, tally, scratch);
            if (in_place) std::memcpy(to, buffer.data(), n * size_of(out_dtype));
        }
        std::lock_guard<std::mutex> lock(mutex);
        total.nonfinite += tally.nonfinite;
        total.overflow += tally.overflow;
    };
    std::vector<std::thread> others;
    for (unsigned i = 1; i < threads; ++i) others.emplace_back(work);
    work();
    for (std::thread& thread : others) thread.join();
    return total;
}

}  // namespace sds
