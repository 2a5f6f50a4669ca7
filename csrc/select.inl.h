// The loop of select.h: a strip of elements' keys into a pass of a selection. Included once per CPU target, inside that
// target's namespace and region, after elementwise.inl.h.

// How often each of the upper 16 bits occurs.
template <class Key>
void count_upper(const Key* keys, size_t n, uint32_t* histogram) {
    constexpr int below = 8 * sizeof(Key) - 16;
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        ++histogram[keys[i] >> below];
        ++histogram[keys[i + 1] >> below];
        ++histogram[keys[i + 2] >> below];
        ++histogram[keys[i + 3] >> below];
    }
    for (; i < n; ++i) ++histogram[keys[i] >> below];
}

// Which of 64 keys have these upper bits: a bit each.
inline uint64_t sharing(const uint32_t* keys, int above, uint32_t prefix) {
    uint64_t found = 0;
    for (int i = 0; i < 64; i += Lanes::width)
        found |= static_cast<uint64_t>(having_upper(keys + i, above, prefix)) << i;
    return found;
}
inline uint64_t sharing(const uint64_t* keys, int above, uint64_t prefix) {
    uint64_t found = 0;
    for (int i = 0; i < 64; ++i) found |= static_cast<uint64_t>(keys[i] >> above == prefix) << i;
    return found;
}

inline uint64_t count_bits(uint64_t bits) {
#if defined(__GNUC__)
    return static_cast<uint64_t>(__builtin_popcountll(bits));
#else
    uint64_t found = 0;
    for (; bits != 0; bits &= bits - 1) ++found;
    return found;
#endif
}

// An element whose key has the bits that are known of the k-th's.
template <class Key>
void add_shared(Selection& into, uint64_t index, Key key) {
    if (into.shift < 0) {
        if (into.wanted != 0 && --into.wanted == 0) into.found_index(index);
        return;
    }
    const uint64_t low = key >> into.shift & 0xffff;
    ++into.histogram[low];
    if (into.collecting()) into.collect(index, low);
}

template <class Key>
void select_strip(Selection& into, const Key* keys, size_t n) {
    constexpr int bits = 8 * sizeof(Key);
    const uint64_t first = into.position;
    into.position += n;
    if (into.shift == bits - 16) return count_upper(keys, n, into.counts());
    const int above = into.shift + 16;
    const Key prefix = static_cast<Key>(into.prefix);
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        for (uint64_t found = sharing(keys + i, above, prefix); found != 0; found &= found - 1) {
            const size_t at = i + lowest_bit(found);
            add_shared(into, first + at, keys[at]);
        }
    }
    for (; i < n; ++i) {
        if (keys[i] >> above == prefix) add_shared(into, first + i, keys[i]);
    }
}
