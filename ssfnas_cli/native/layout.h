// How structures that Python mirrors lie in memory, so that Python can compare its own when it loads a library.
#pragma once

#include <cstddef>

struct LayoutEntry {
    const char *name;  // "Structure" for a structure's size, "Structure.field" for a field's offset; null at the end
    long value;        // in bytes
};

#define SIZE_OF(S) {#S, long(sizeof(S))}
#define OFFSET_OF(S, field) {#S "." #field, long(offsetof(S, field))}
