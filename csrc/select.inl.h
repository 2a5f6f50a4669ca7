// The loop of select.h: a strip of elements into a pass of a selection. Included once per CPU target, inside that
// target's namespace and region, after elementwise.inl.h.

template <class T>
void select_strip(Selection& into, const T* x, size_t n) {
    using Key = decltype(key_of(T()));
    constexpr int bits = 8 * sizeof(Key);
    Key keys[kStrip];
    for (size_t i = 0; i < n; ++i) keys[i] = key_of(x[i]);
    const uint64_t first = into.position;
    into.position += n;
    if (into.shift == bits - 16) {
        for (size_t i = 0; i < n; ++i) ++into.histogram[keys[i] >> (bits - 16)];
        return;
    }
    // Few share the prefix: sixteen at a time are passed over.
    const int above = into.shift + 16;
    const Key prefix = static_cast<Key>(into.prefix);
    for (size_t begin = 0; begin < n; begin += 16) {
        const size_t end = begin + 16 < n ? begin + 16 : n;
        bool any = false;
        for (size_t i = begin; i < end; ++i) any |= keys[i] >> above == prefix;
        if (!any) continue;
        for (size_t i = begin; i < end; ++i) {
            if (keys[i] >> above != prefix) continue;
            if (into.shift < 0) {
                if (into.wanted != 0 && --into.wanted == 0) into.found_index(first + i);
                continue;
            }
            const uint64_t low = keys[i] >> into.shift & 0xffff;
            ++into.histogram[low];
            if (into.collecting()) into.collect(first + i, low);
        }
    }
}
