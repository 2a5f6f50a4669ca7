// The loops of generated.h. Included once per CPU target, inside that target's namespace and region, after
// functions.h.

// Consecutive blocks of four words: word w of block b is words[w][b].
constexpr size_t kBlocks = 64;
using Blocks = uint32_t[4][kBlocks];

inline void philox(uint64_t first, uint32_t draw, const uint32_t (&key)[2], Blocks& out) {
    uint64_t number[kBlocks], upper_number[kBlocks];
    for (size_t b = 0; b < kBlocks; ++b) {
        number[b] = first + b;
        upper_number[b] = (first + b) >> 32;
    }
    // The upper halves of the lanes hold anything.
    for (size_t b = 0; b < kBlocks; b += Words::width) {
        Words w0 = Words::read(number + b), w1 = Words::read(upper_number + b), w2 = Words::all(draw);
        Words w3 = Words::all(0);
        for (uint32_t round = 0; round < 10; ++round) {
            const Words p = Words::all(0xD2511F53) * w0, q = Words::all(0xCD9E8D57) * w2;
            w0 = upper(q) ^ w1 ^ Words::all(key[0] + round * 0x9E3779B9);
            w1 = q;
            w2 = upper(p) ^ w3 ^ Words::all(key[1] + round * 0xBB67AE85);
            w3 = p;
        }
        w0.write_lower(out[0] + b);
        w1.write_lower(out[1] + b);
        w2.write_lower(out[2] + b);
        w3.write_lower(out[3] + b);
    }
}

template <class T>
T uniform(uint32_t word) {
    return static_cast<T>(static_cast<int32_t>(word >> 8)) * static_cast<T>(0x1p-24);
}

template <class T>
void draw_numbers(const Generated& of, uint64_t first, size_t n, T* to) {
    while (n > 0) {
        const uint64_t block = first / 4;
        const size_t skip = static_cast<size_t>(first % 4);
        Blocks word;
        philox(block, of.draw, of.key, word);
        T drawn[4][kBlocks], in_order[4 * kBlocks];
        if (of.kind == Generated::uniform) {
            for (size_t w = 0; w < 4; ++w) {
                for (size_t b = 0; b < kBlocks; ++b) drawn[w][b] = uniform<T>(word[w][b]);
            }
        } else {
            functions::normals_strip(word[0], word[1], drawn[0], drawn[1], kBlocks);
            functions::normals_strip(word[2], word[3], drawn[2], drawn[3], kBlocks);
        }
        size_t now = 4 * kBlocks - skip;
        now = now < n ? now : n;
        T* const whole = now == 4 * kBlocks ? to : in_order;
        for (size_t b = 0; b < kBlocks; ++b) {
            for (size_t w = 0; w < 4; ++w) whole[4 * b + w] = drawn[w][b];
        }
        if (whole != to) memcpy(to, whole + skip, now * sizeof(T));
        first += now;
        to += now;
        n -= now;
    }
}

// Elements from `first` on.
template <class T>
void generate(const Generated& of, uint64_t first, size_t n, T* to) {
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
        for (size_t i = 0; i < n; ++i) to[i] = static_cast<double>(first + i) <= of.last ? T(1) : T(0);
    } else if (of.kind == Generated::uniform || of.kind == Generated::normal) {
        draw_numbers(of, first, n, to);
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
