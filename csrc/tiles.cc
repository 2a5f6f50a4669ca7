// One tile of a run, on a worker's thread: do_tile, or do_stages for a job that has stages, → do_stretch → fetch.
#include <algorithm>
#include <map>
#include <memory>
#include <numeric>

#include "engine_buffers.h"

namespace sds {

namespace {

// The bytes that an encoded operand's codes are.
JobOperand codes_of(const JobOperand& operand) { return {operand.source, Element::u8, operand.offset}; }

}  // namespace

// Everything that the tile's bytes of the output come from, and one write.
void Run::do_tile(const Tile& tile, Buffers& buffers) {
    const uint64_t low = tile.begin, high = tile.end, base = low - low % kPage;
    uint64_t reached = low;
    for (size_t job_index = tile.job; job_index < jobs_.size() && jobs_[job_index].out_offset < high; ++job_index) {
        const Job* const job = &jobs_[job_index];
        if (job->count == 0) continue;
        const uint64_t from = std::max(job->out_offset, low), to = std::min(job->out_end(), high);
        if (job->kind == Job::reduce) {
            do_chunks(job_index, from - job->out_offset, to - job->out_offset, buffers);
            continue;
        }
        if (from > reached) buffers.clear(reached - base, from - reached);  // padding
        const uint64_t unit = job->element_bytes();
        do_stretch(job_index, (from - job->out_offset) / unit, (to - from) / unit, static_cast<int64_t>(from - base),
                   buffers);
        // A copy's bytes may have been summed as its operand's already.
        if (job->sum >= 0 && !(job->kind == Job::copy && job->operands[0].check >= 0))
            checksums_.written(job->sum, crc32(0, buffers.out[0].data() + (from - base), to - from), to - from, to);
        reached = to;
    }
    if (high > reached) buffers.clear(reached - base, high - reached);
    write(buffers, low - base, high - low, low);
}

// What the buffers hold from their byte `at` on, to where it belongs: `offset` is the first output's.
void Run::write(Buffers& buffers, uint64_t at, uint64_t bytes, uint64_t offset) {
    for (size_t k = 0; k < outputs_.size(); ++k)
        outputs_[k].sink->write(buffers.out[k].data() + at, bytes, offset + static_cast<uint64_t>(outputs_[k].shift));
}

// A job that has stages: what they need of the whole tensor, then its bytes of the output (and the padding before).
void Run::do_stages(const Tile& tile, Buffers& buffers) {
    const Job& job = jobs_[tile.job];
    std::vector<DType> dtypes;
    for (const JobOperand& operand : job.operands) dtypes.push_back(operand.dtype());
    Mixers mixers;
    for (const auto& mixing : job.staged->mixings)
        mixers.push_back(std::make_shared<const Mixer>(mixing, sources_, target_));
    for (const auto& numbers : *job.numbers)
        buffers.stages.emplace_back(*programs_[job.index], *numbers, job.staged->extents, dtypes, target_, mixers);
    const bool in_place = std::all_of(job.operands.begin(), job.operands.end(),
                                      [this](const JobOperand& operand) { return is_in_place(operand); });
    const auto& stages_of = programs_[job.index]->stages;
    const bool reads =
        std::any_of(stages_of.begin(), stages_of.end(), [](const Stage& s) { return !s.reductions.empty(); });
    buffers.again = in_place && reads && may_stay_mapped(job) ? Again::mapped : Again::yes;
    for (size_t stage = 0; stage < programs_[job.index]->stages.size(); ++stage) {
        for (Stages& stages : buffers.stages) stages.begin(stage);
        for (bool ended = false; !ended && !stop_;) {
            if (in_place && std::any_of(buffers.stages.begin(), buffers.stages.end(),
                                        [](const Stages& stages) { return stages.wants_sample(); })) {
                for (Stages& stages : buffers.stages) stages.begin_sample();
                do_stretch(tile.job, 0, job.elements(), -1, buffers);
                for (Stages& stages : buffers.stages) stages.end_sample(buffers.stages.size());
            }
            bool reads = false;
            for (const Stages& stages : buffers.stages) reads |= stages.reads();
            if (reads) do_stretch(tile.job, 0, job.elements(), -1, buffers);
            ended = true;
            for (Stages& stages : buffers.stages) ended &= !stop_ && stages.end();
        }
    }
    if (outputs_.empty() && !stop_) {
        std::lock_guard<std::mutex> lock(mutex_);
        values_[tile.job] = buffers.stages[0].of_whole_tensor();
    }
    const uint64_t unit = job.element_bytes();
    for (uint64_t at = tile.begin; at < tile.end && !stop_;) {
        const uint64_t to = std::min(tile.end, (at / options_.tile_bytes + 1) * options_.tile_bytes);
        const uint64_t from = std::min(to, std::max(at, job.out_offset)), base = at - at % kPage;
        buffers.clear(at - base, from - at);
        if (to > from) {
            do_stretch(tile.job, (from - job.out_offset) / unit, (to - from) / unit, static_cast<int64_t>(from - base),
                       buffers);
            if (job.sum >= 0)
                checksums_.written(job.sum, crc32(0, buffers.out[0].data() + (from - base), to - from), to - from, to);
        }
        write(buffers, at - base, to - at, at);
        bytes_done_ += to - at;
        at = to;
    }
    buffers.stages.clear();
    if (buffers.again == Again::mapped) release_tensors(job);
    buffers.again = Again::no;
}

// How many elements a stretch of a reduction has, about `most`: whole blocks. Where columns are summed (`columns` is
// not 0) it has whole rows too, if possible 64 of them, so that the columns' sums are loaded and stored rarely.
static uint64_t whole_blocks(uint64_t most, uint64_t columns) {
    constexpr uint64_t kRows = 64, kMost = 1 << 20;
    const uint64_t rows = std::lcm(columns, kReduceBlock);
    most = std::max(most, std::min(kRows * columns, kMost));
    return most - most % (columns > 0 && rows <= most ? rows : kReduceBlock);
}

// `count` elements of one job from element `first` on, in chunks that stay in the cache: to byte `at` of the output
// buffers, or (−1) into reductions, those of the stage that has begun if the job has stages.
void Run::do_stretch(size_t job_index, uint64_t first, uint64_t count, int64_t at, Buffers& buffers) {
    const Job& job = jobs_[job_index];
    const bool staged = has_stages(job);
    std::vector<Version>& versions = buffers.versions;
    versions.clear();
    for (size_t k = 0; k < buffers.out.size(); ++k) {
        Version version{at < 0 ? nullptr : buffers.out[k].data() + at};
        if (staged) {
            version.stages = &buffers.stages[k];
            if (at >= 0) {
                version.program = version.stages->last().program.get();
                version.numbers = version.stages->last().numbers.get();
            }
        } else if (job.kind == Job::evaluate) {
            version.program = programs_[job.index].get();
            version.numbers = (*job.numbers)[k].get();
        }
        versions.push_back(version);
    }
    if (job.kind == Job::fill) {
        for (const Version& version : versions)
            target_.fill(fills_[job.index], first, version.out, job.out_dtype, count);
        return;
    }
    uint64_t widest = 1;
    bool mapped = false, in_place = true;
    for (size_t k = 0; k < job.operands.size(); ++k) {
        const JobOperand& operand = job.operands[k];
        widest = std::max(widest, job.operand_bytes(k));
        mapped |= io_[operand.source] == Io::mmap;
        in_place &= is_in_place(operand);
    }
    uint64_t most = chunk_bytes_ / widest;
    if (at < 0) most = whole_blocks(most, staged && in_place ? buffers.stages[0].columns() : 0);
    for (uint64_t done = 0, now; done < count; done += now) {
        if (staged && stop_) return;
        now = std::min(most, count - done);
        Evaluation work{target_,          job, versions, first + done, now, options_.overflow, buffers.scratch,
                        buffers.reduction};
        try {
            for (size_t k = 0; k < job.operands.size(); ++k) {
                const JobOperand& operand = job.operands[k];
                const uint64_t unit = job.operand_bytes(k), from = (first + done) * unit;
                if (operand.encoding()) {
                    Decoder& decoder = buffers.decoders[k];
                    decoder.prepare(operand.shared<Encoding>(), sources_);
                    const auto [begin, bytes] = decoder.range(first + done, now);
                    work.decoders[k] = &decoder;
                    work.operands[k] = {
                        fetch(codes_of(operand), begin, bytes, decoder.room(bytes + 2 * kPage), Again::yes),
                        operand.dtype()};
                } else if (operand.low_rank()) {
                    work.multipliers[k] = &buffers.multipliers[k];
                    work.multipliers[k]->prepare(operand.shared<LowRank>(), sources_, target_);
                } else if (job.kind == Job::copy && is_read(operand)) {  // to where it is written from
                    sources_[operand.source]->read(versions[0].out, now * unit, operand.offset + from);
                    work.operands[k] = {versions[0].out, operand.dtype()};
                } else {
                    work.operands[k] = {fetch(operand, from, now * unit, buffers.in[k].data(), buffers.again),
                                        operand.dtype()};
                }
            }
        } catch (const Error& error) {
            throw Error(error.code, error.what(), static_cast<int64_t>(job_index));
        }
        if (!mapped) {
            Evaluation::run(&work);
        } else if (!os::guarded(Evaluation::run, &work)) {
            for (const JobOperand& operand : job.operands) sources_[operand.source]->check_unchanged();
            throw Error(Code::truncated, "an input can no longer be read", static_cast<int64_t>(job_index));
        }
        if (buffers.again == Again::yes) release_mapped();
        if (staged && at < 0) continue;
        add_checksums(job_index, first + done, now, work.crcs);
        for (size_t k = 0; k < versions.size() && at >= 0; ++k) {
            if (versions[k].tally.nonfinite || versions[k].tally.overflow) add_tally(k, job_index, versions[k].tally);
            versions[k].tally = {};
            versions[k].out += now * job.element_bytes();
        }
    }
}

// Where `bytes` of an operand from its byte `first` on can be read: in the mapping, or in `buffer` after a read.
const uint8_t* Run::fetch(const JobOperand& operand, uint64_t first, uint64_t bytes, uint8_t* buffer, Again again) {
    Source& source = *sources_[operand.source];
    if (operand.view()) return source.gather(*operand.view(), operand.offset, first, bytes, buffer);
    const uint64_t offset = operand.offset + first;
    if (source.in_memory()) return source.memory(offset, bytes);
    if (mappings_[operand.source]) {
        if (again != Again::mapped) mapped_bytes_ += std::max(bytes, kFaultAround);
        return mappings_[operand.source]->data() + offset;
    }
    // At the offset's own place within a page: the kernel copies between equally aligned pages twice as fast.
    const uint64_t within = offset % kPage;
    const uint64_t whole = (within + bytes + kPage - 1) / kPage * kPage;
    const bool direct = io_[operand.source] == Io::direct && again == Again::no &&
                        source.read_past_cache(buffer, whole, offset - within) >= within + bytes;
    // Where that isn't possible, or the file shrank, the ordinary read decides.
    if (!direct) source.read(buffer + within, bytes, offset);
    if (Tap* const tap = again == Again::no ? taps_[operand.source].get() : nullptr)
        tap->offer(buffer + within, bytes, offset);
    return buffer + within;
}

// Whether the operand's bytes are where they are read, and not in a buffer.
bool Run::is_in_place(const JobOperand& operand) const {
    return !operand.view() && !operand.is_made() &&
           (sources_[operand.source]->in_memory() || mappings_[operand.source]);
}

// Whether the operand's bytes come by ordinary positioned reads.
bool Run::is_read(const JobOperand& operand) const {
    return !operand.view() && !sources_[operand.source]->in_memory() && io_[operand.source] == Io::pread;
}

// The chunks of a reduction that begin between these bytes of its range: whole ones, wherever the tile ends.
void Run::do_chunks(size_t job_index, uint64_t low, uint64_t high, Buffers& buffers) {
    const Job& job = jobs_[job_index];
    const uint64_t span = kReduceChunk * job.element_bytes();
    for (uint64_t chunk = (low + span - 1) / span; chunk * span < high; ++chunk) {
        if (stop_) return;
        const uint64_t first = chunk * kReduceChunk;
        buffers.reduction = {};
        do_stretch(job_index, first, std::min<uint64_t>(kReduceChunk, job.count - first), -1, buffers);
        std::lock_guard<std::mutex> lock(mutex_);
        reductions_.chunk_done(job_index, chunk, buffers.reduction);
    }
}

}  // namespace sds
