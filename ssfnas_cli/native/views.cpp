// One self-supervised view of every image of a batch, from random draws that are made in ssfnas_cli/data/augment.py.
//
// What is fast here, and why (measured by benchmarks/input.py, docs/performance.md): an image goes from its bytes to the
// network's input while it lies in the first-level cache, in planes, so that a vector holds pixels of one channel. The
// same steps over a whole batch, as torch runs them, write and read some twenty arrays of its size.
//
// Images are computed one by one, always by the same instructions, so that no result depends on the rest of the batch.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "layout.h"

extern "C" struct View {
    int32_t num, height, width, channels, radius;  // of the blur, in pixels; 0 for no blur
    const uint8_t *images;                         // [num][height][width][channels]
    // [num][height] and [num][width]: the line of the image at or before each line of the view, and the next one's weight
    const int32_t *rows, *columns;
    const float *row_weights, *column_weights;
    const float *matrix;                           // [num][channels][channels]: multiplies a pixel's colour
    const float *shift;                            // [num][channels]: the share of a channel's mean that is added to every colour
    const float *taps;                             // [num][radius + 1]: the blur from the centre outwards
    const uint8_t *solarized;                      // [num]
    const float *mean, *std;                       // [channels]
    float *out;                                    // [num][height][width][channels]
};

namespace {

// One image's planes [C][height][width], and spare memory for a line of all planes or for one plane.
struct Scratch {
    std::vector<float> planes, spare;
};

// Resize the drawn box to the full size bilinearly, rows first, then columns.
template <int C>
void resize(const View &view, int image, Scratch &scratch) {
    const int height = view.height, width = view.width;
    const uint8_t *pixels = view.images + int64_t(image) * height * width * C;
    const int32_t *rows = view.rows + int64_t(image) * height, *columns = view.columns + int64_t(image) * width;
    const float *row_weights = view.row_weights + int64_t(image) * height;
    const float *column_weights = view.column_weights + int64_t(image) * width;
    float *__restrict line = scratch.spare.data(), *__restrict planes = scratch.planes.data();
    for (int y = 0; y < height; y++) {
        const uint8_t *low = pixels + int64_t(rows[y]) * width * C;
        const uint8_t *high = pixels + int64_t(std::min(rows[y] + 1, height - 1)) * width * C;
        const float weight = row_weights[y];
        for (int i = 0; i < width * C; i++) {
            const float first = low[i] * (1 / 255.f), second = high[i] * (1 / 255.f);
            line[i] = first + weight * (second - first);
        }
        std::copy_n(line + (width - 1) * C, C, line + width * C);  // the last pixel is repeated
        for (int x = 0; x < width; x++) {
            const float *first = line + columns[x] * C, *second = first + C;
            for (int c = 0; c < C; c++)
                planes[(int64_t(c) * height + y) * width + x] = first[c] + column_weights[x] * (second[c] - first[c]);
        }
    }
}

// The mean, summed in double in a fixed number of lanes.
double mean_of(const float *values, int64_t num) {
    constexpr int LANES = 8;
    double lanes[LANES] = {};
    const int64_t whole = num / LANES * LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int k = 0; k < LANES; k++) lanes[k] += values[i + k];
    for (int64_t i = whole; i < num; i++) lanes[i - whole] += values[i];
    double total = 0;
    for (double lane : lanes) total += lane;
    return total / double(num);
}

template <int C>
void colour(const View &view, int image, Scratch &scratch) {
    const int64_t size = int64_t(view.height) * view.width;
    float matrix[C][C], shift = 0;
    for (int c = 0; c < C; c++) {
        std::copy_n(view.matrix + (int64_t(image) * C + c) * C, C, matrix[c]);
        shift += view.shift[int64_t(image) * C + c] * float(mean_of(scratch.planes.data() + c * size, size));
    }
    float *planes = scratch.planes.data();
    for (int64_t i = 0; i < size; i++) {
        float pixel[C];
        for (int c = 0; c < C; c++) {
            pixel[c] = shift;
            for (int k = 0; k < C; k++) pixel[c] += matrix[c][k] * planes[k * size + i];
        }
        for (int c = 0; c < C; c++) planes[c * size + i] = std::min(std::max(pixel[c], 0.f), 1.f);
    }
}

// The index of a line beyond the border, mirrored at the outermost line.
int reflected(int place, int num) {
    return place < 0 ? -place : place >= num ? 2 * (num - 1) - place : place;
}

void blur(const View &view, const float *taps, float *plane, float *spare) {
    const int height = view.height, width = view.width;
    for (int y = 0; y < height; y++) {
        float *target = spare + int64_t(y) * width;
        for (int x = 0; x < width; x++) target[x] = taps[0] * plane[int64_t(y) * width + x];
        for (int k = 1; k <= view.radius; k++) {
            const float *above = plane + int64_t(reflected(y - k, height)) * width;
            const float *below = plane + int64_t(reflected(y + k, height)) * width;
            for (int x = 0; x < width; x++) target[x] += taps[k] * (above[x] + below[x]);
        }
    }
    float *padded = spare + int64_t(height) * width + view.radius;
    for (int y = 0; y < height; y++) {
        const float *source = spare + int64_t(y) * width;
        float *target = plane + int64_t(y) * width;
        for (int x = -view.radius; x < width + view.radius; x++) padded[x] = source[reflected(x, width)];
        for (int x = 0; x < width; x++) target[x] = taps[0] * padded[x];
        for (int k = 1; k <= view.radius; k++)
            for (int x = 0; x < width; x++) target[x] += taps[k] * (padded[x - k] + padded[x + k]);
    }
}

// Solarize if drawn, standardise, and put each pixel's channels side by side.
template <int C>
void finish(const View &view, int image, const Scratch &scratch) {
    const int64_t size = int64_t(view.height) * view.width;
    const float *planes = scratch.planes.data();
    float *out = view.out + int64_t(image) * size * C, mean[C], std[C];
    std::copy_n(view.mean, C, mean);
    std::copy_n(view.std, C, std);
    const float white = view.solarized[image] ? 1 : 2;  // min(x, 2 - x) is x
    for (int64_t i = 0; i < size; i++)
        for (int c = 0; c < C; c++) {
            const float value = planes[c * size + i];
            out[i * C + c] = (std::min(value, white - value) - mean[c]) / std[c];
        }
}

template <int C>
void render(const View &view) {
    const int64_t size = int64_t(view.height) * view.width;
    Scratch scratch;
    scratch.planes.resize(C * size);
    scratch.spare.resize(std::max<int64_t>(C * (view.width + 1), size + view.width + 2 * view.radius));
    for (int image = 0; image < view.num; image++) {
        resize<C>(view, image, scratch);
        colour<C>(view, image, scratch);
        const float *taps = view.taps + int64_t(image) * (view.radius + 1);
        if (taps[0] != 1)
            for (int c = 0; c < C; c++) blur(view, taps, scratch.planes.data() + c * size, scratch.spare.data());
        finish<C>(view, image, scratch);
    }
}

}  // namespace

extern "C" void render_view(const View *view) {
    if (view->channels == 1)
        render<1>(*view);
    else
        render<3>(*view);
}

extern "C" const LayoutEntry *views_layout() {
    static const LayoutEntry entries[] = {
        SIZE_OF(View), OFFSET_OF(View, num), OFFSET_OF(View, height), OFFSET_OF(View, width),
        OFFSET_OF(View, channels), OFFSET_OF(View, radius), OFFSET_OF(View, images), OFFSET_OF(View, rows),
        OFFSET_OF(View, columns), OFFSET_OF(View, row_weights), OFFSET_OF(View, column_weights),
        OFFSET_OF(View, matrix), OFFSET_OF(View, shift), OFFSET_OF(View, taps), OFFSET_OF(View, solarized),
        OFFSET_OF(View, mean), OFFSET_OF(View, std), OFFSET_OF(View, out),
        {nullptr, 0},
    };
    return entries;
}
