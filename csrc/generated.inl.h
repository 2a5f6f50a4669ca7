// The loops of generated.h. Included once per CPU target, inside that target's namespace and region, after
// normal.inl.h.

constexpr size_t kTogether = Words::width == 8 ? 4 : 2;     // registers of blocks that go through the rounds together
constexpr size_t kMadeTogether = kTogether * Words::width;  // blocks
constexpr size_t kDrawn = 2 * kStrip;                       // elements that are drawn at a time

// Of each lane its block, from a register's first on: in this order write_blocks of lanes/*.h writes them one after the
// other.
struct LaneBlocks {
    uint64_t of[Words::width] = {};
    constexpr LaneBlocks() {
        for (size_t l = 0; l < Words::width; ++l) of[l] = l % 2 * (Words::width / 2) + l / 2;
    }
};
constexpr LaneBlocks kLaneBlocks;

// The words of any blocks: seven rounds of Philox.
class Rounds {
 public:
    Rounds(const Generated& of, uint32_t part) {
        for (uint32_t round = 0; round < kRounds; ++round) {
            key_[round][0] = Words::all(of.key[0] + round * 0x9E3779B9);
            key_[round][1] = Words::all(of.key[1] + round * 0xBB67AE85);
        }
        const Words none = Words::all(0);
        product_ = Words::all(0xCD9E8D57) * Words::all(of.draw);
        key_[0][0] = exclusive_or(upper(product_), key_[0][0], none);
        key_[0][1] = exclusive_or(Words::all(part), key_[0][1], none);
    }

    // `blocks` are the numbers of those in each register; their words come behind each other. (The upper halves of the
    // lanes of w hold anything.)
    template <size_t registers>
    void write(const Words (&blocks)[registers], uint32_t* to) const {
        Words w[registers][4];
        for (size_t g = 0; g < registers; ++g) {  // the first round, in which draw and part are the same for all
            const Words p = Words::all(0xD2511F53) * blocks[g], none = Words::all(0);
            w[g][0] = exclusive_or(upper(blocks[g]), key_[0][0], none);
            w[g][1] = product_;
            w[g][2] = exclusive_or(upper(p), key_[0][1], none);
            w[g][3] = p;
        }
        for (uint32_t round = 1; round < kRounds; ++round) {
            for (size_t g = 0; g < registers; ++g) {
                const Words p = Words::all(0xD2511F53) * w[g][0], q = Words::all(0xCD9E8D57) * w[g][2];
                w[g][0] = exclusive_or(upper(q), w[g][1], key_[round][0]);
                w[g][1] = q;
                w[g][2] = exclusive_or(upper(p), w[g][3], key_[round][1]);
                w[g][3] = p;
            }
        }
        for (size_t g = 0; g < registers; ++g) write_blocks(w[g], to + 4 * g * Words::width);
    }

    // Of blocks one after the other, and of some more, to fill a register.
    void write(uint64_t first, size_t count, uint32_t* to) const {
        const Words lanes = Words::read(kLaneBlocks.of);
        size_t done = 0;
        for (; done + kMadeTogether <= count; done += kMadeTogether) {
            Words blocks[kTogether];
            for (size_t g = 0; g < kTogether; ++g) blocks[g] = lanes + Words::all(first + done + g * Words::width);
            write(blocks, to + 4 * done);
        }
        for (; done < count; done += Words::width) {
            const Words blocks[] = {lanes + Words::all(first + done)};
            write(blocks, to + 4 * done);
        }
    }

 private:
    static constexpr uint32_t kRounds = 7;
    // The words of the key, of the first round with what else is the same for all blocks; 0xCD9E8D57 times the draw.
    Words key_[kRounds][2], product_;
};

// Pieces of `size` bytes that elements take from their blocks, one after the other.
template <size_t size>
class Pieces {
 public:
    static constexpr uint64_t kEach = 16 / size;  // elements that a block serves
    static constexpr uint32_t kPart = size - 1;

    Pieces(const Generated& of, uint64_t first, size_t n) : skip_(static_cast<size_t>(first % kEach)) {
        Rounds(of, kPart).write(first / kEach, static_cast<size_t>((skip_ + n + kEach - 1) / kEach), words_);
    }
    const uint8_t* at(size_t i) const { return reinterpret_cast<const uint8_t*>(words_) + (skip_ + i) * size; }

 private:
    // A register of blocks more than needed may be made, and a register of elements more read.
    alignas(64) uint32_t words_[(kDrawn / kEach + Words::width + 4) * 4];
    size_t skip_;
};

// make(i): a register of elements from the i-th on.
template <class Make>
void write_lanes(size_t n, float* to, Make make) {
    size_t i = 0;
    for (; i + Lanes::width <= n; i += Lanes::width) make(i).write(to + i);
    if (i < n) {
        float last[Lanes::width];
        make(i).write(last);
        memcpy(to + i, last, (n - i) * sizeof(float));
    }
}

inline float number_of(uint32_t byte, uint32_t half) {
    return static_cast<float>(static_cast<int32_t>(byte << 16 | half));
}

inline void draw_normals(const Pieces<1>& bytes, const Pieces<2>& halves, size_t n, float* to) {
    // Registers with numbers of lower octaves, one in 32 of eight: noted, for a branch would rarely be foreseen.
    struct Noted {
        uint32_t first, lower;
    } noted[kDrawn / Lanes::width + 1];
    size_t count = 0;
    write_lanes(n, to, [&](size_t i) {
        uint32_t lower;
        const Lanes found = upper_normals(of_24_bits(bytes.at(i), halves.at(i)), lower);
        noted[count] = {static_cast<uint32_t>(i), lower};
        count += lower != 0;
        return found;
    });
    for (size_t k = 0; k < count; ++k) {
        for (uint32_t lower = noted[k].lower; lower != 0; lower &= lower - 1) {
            const size_t i = noted[k].first + lowest_bit(lower);
            if (i >= n) break;
            uint16_t half;
            memcpy(&half, halves.at(i), sizeof half);
            to[i] = normal_of(number_of(*bytes.at(i), half));
        }
    }
}

// Of uniform numbers the bytes alone, and all of a number where the others of its bits say whether it is below a bound.
inline void draw_to_compare(const Generated& of, uint64_t first, size_t n, double bound, float* to) {
    const Pieces<1> bytes(of, first, n);
    write_lanes(n, to, [&](size_t i) { return of_bytes(bytes.at(i)) * Lanes::all(0x1p-8f); });
    const double place = 256 * bound;
    if (!(place > 0 && place < 256) || place == std::floor(place)) return;
    uint16_t open[kDrawn];
    size_t count = 0;
    const uint8_t *const begin = bytes.at(0), *const end = bytes.at(n), *p = begin;
    while (p < end && (p = static_cast<const uint8_t*>(
                           memchr(p, static_cast<int>(place), static_cast<size_t>(end - p)))) != nullptr)
        open[count++] = static_cast<uint16_t>(p++ - begin);
    using Halves = Pieces<2>;
    const Rounds rounds(of, Halves::kPart);
    for (size_t done = 0; done < count; done += Words::width) {
        const size_t now = std::min(Words::width, count - done);
        uint64_t number[Words::width];
        for (size_t l = 0; l < Words::width; ++l)
            number[l] = (first + open[done + std::min<size_t>(kLaneBlocks.of[l], now - 1)]) / Halves::kEach;
        const Words blocks[] = {Words::read(number)};
        uint32_t words[4 * Words::width];
        rounds.write(blocks, words);
        for (size_t k = 0; k < now; ++k) {
            const size_t i = open[done + k], at = static_cast<size_t>((first + i) % Halves::kEach);
            const uint32_t half = words[4 * k + at / 2] >> (at % 2 * 16) & 0xffff;
            to[i] = number_of(begin[i], half) * 0x1p-24f;
        }
    }
}

// `bound`: null unless the numbers are only compared with it, by <.
inline void draw_numbers(const Generated& of, uint64_t first, size_t n, float* to, const float* bound) {
    for (size_t now; n > 0; first += now, to += now, n -= now) {
        now = std::min(n, kDrawn);
        if (bound && of.kind == Generated::uniform) {
            draw_to_compare(of, first, now, *bound, to);
            continue;
        }
        const Pieces<1> bytes(of, first, now);
        const Pieces<2> halves(of, first, now);
        if (of.kind == Generated::uniform) {
            write_lanes(now, to,
                        [&](size_t i) { return of_24_bits(bytes.at(i), halves.at(i)) * Lanes::all(0x1p-24f); });
        } else {
            draw_normals(bytes, halves, now, to);
        }
    }
}
inline void draw_numbers(const Generated& of, uint64_t first, size_t n, double* to, const double* bound) {
    for (size_t now; n > 0; first += now, to += now, n -= now) {
        now = std::min(n, kDrawn);
        float narrow[kDrawn];
        if (bound && of.kind == Generated::uniform) {
            draw_to_compare(of, first, now, *bound, narrow);
        } else {
            draw_numbers(of, first, now, narrow, nullptr);
        }
        for (size_t i = 0; i < now; ++i) to[i] = narrow[i];
    }
}

// Elements from `first` on; `bound` as of draw_numbers.
template <class T>
void generate(const Generated& of, uint64_t first, size_t n, T* to, const T* bound = nullptr) {
    if (of.kind == Generated::elements) {
        for (size_t i = 0; i < n; ++i) {
            if (of.wide) {
                double x;
                memcpy(&x, of.stored + (first + i) * sizeof x, sizeof x);
                to[i] = static_cast<T>(x);
            } else {
                float x;
                memcpy(&x, of.stored + (first + i) * sizeof x, sizeof x);
                to[i] = x;
            }
        }
    } else if (of.kind == Generated::within) {
        const double until =
            of.last < static_cast<double>(first) ? 0 : std::floor(of.last) - static_cast<double>(first) + 1;
        const size_t ones = until < static_cast<double>(n) ? static_cast<size_t>(until) : n;
        std::fill(to, to + ones, T(1));
        std::fill(to + ones, to + n, T(0));
    } else if (of.kind == Generated::uniform || of.kind == Generated::normal) {
        draw_numbers(of, first, n, to, bound);
    } else if (of.inner == 1) {
        for (size_t i = 0; i < n;) {
            const uint64_t place = (first + i) % of.length, left = of.length - place;
            const size_t run = left < n - i ? static_cast<size_t>(left) : n - i;
            if (of.values) {
                for (size_t j = 0; j < run; ++j) to[i + j] = static_cast<T>(of.values[place + j]);
            } else {
                for (size_t j = 0; j < run; ++j) to[i + j] = static_cast<T>(static_cast<double>(place + j));
            }
            i += run;
        }
    } else {
        uint64_t place = first / of.inner % of.length, left = of.inner - first % of.inner;
        for (size_t i = 0; i < n;) {
            const T value = static_cast<T>(of.values ? of.values[place] : static_cast<double>(place));
            const size_t end = left < n - i ? i + static_cast<size_t>(left) : n;
            for (; i < end; ++i) to[i] = value;
            place = place + 1 == of.length ? 0 : place + 1;
            left = of.inner;
        }
    }
}
