// Products: which instruction set computes them, and how threads share the work.
#include "products.h"
#include "instruction_set.h"
#include <string.h>
#include <algorithm>
#include <atomic>

namespace {

const weight_format formats[] = {
    {TQ1_0, 256, 54, 52, 256, 1}, {TQ2_0, 256, 66, 64, 256, 1}, {Q2_0, 64, 18, 0, 32, 1}, {F16, 16, 32, 0, 16, 1},
    {Q8_0, 32, 34, 0, 32, 1},     {Q6_K, 256, 210, 208, 256, 16}, {Q2_K, 256, 84, 80, 256, 8}};

bool is_k(int type) {
    return type == Q6_K || type == Q2_K;
}

// Up to so many columns are computed one by one, where an instruction set can't compute some of them together.
constexpr int64_t SINGLE_COLUMNS = 3, ROWS_TOGETHER = 8;

// Rows of a work item of few columns
constexpr int64_t LEAST_ROWS_OF_FEW = 64, MANY_COLUMNS = 32;

// Columns of F32 that stay in an L2 cache while rows of F16 go by
constexpr int64_t COLUMNS_OF_HALVES = 24;

// So many values of a work item's rows are unpacked at a time.
constexpr int64_t CHUNK_VALUES = 2048;
constexpr int64_t LEAST_COLUMNS_OF_ITEM = 64, ITEMS_PER_THREAD = 4;

const instruction_set * (* const candidates[])(void) = {avx512_amx, avx512_vbmi, avx512_vnni, avx_vnni, avx2, neon_i8mm, neon_dotprod};

const instruction_set * fastest(void) {
    for (auto candidate : candidates)
        if (const instruction_set * found = candidate())
            return found;
    return nullptr;
}

std::atomic<const instruction_set *> chosen{fastest()};

const weight_format * format_of(int type) {
    for (const weight_format & format : formats)
        if (format.type == type)
            return &format;
    return nullptr;
}

char * aligned(char * address) {
    return (char *) round_up((size_t) address, 64);
}

int64_t divide_up(int64_t number, int64_t by) {
    return (number + by - 1) / by;
}

// One product: the job, what computes it, and where in the work space things lie.
struct product {
    const product_job & job;
    const product_team & team;
    const weight_format & format;
    const instruction_set & set;
    char * work;

    void single_columns(void) const;
    void few_columns(void) const;
    void many_columns(void) const;
    void halves(void) const;
    void item(int64_t first_row, int64_t first_panel, int64_t n_panels, char * row_panels, float * tile) const;
    void panels(int64_t row, int64_t panel, int64_t value, const char * row_panel, float * tile) const;
    template <typename Item>
    void share_rows(int64_t rows_of_item, Item item) const;
    float * result(int64_t row, int64_t column) const {
        return (float *) (job.results + column * job.result_bytes) + row;
    }
};

enum path { SINGLE, FEW, MANY, HALVES };

path path_of(const weight_format & format, const instruction_set & set, int64_t n_columns) {
    if (format.type == F16)
        return HALVES;
    if (format.type == Q8_0 || is_k(format.type))
        return n_columns == 1 ? SINGLE : FEW;
    if (set.most_few_columns && n_columns > 1)
        return n_columns <= set.most_few_columns ? FEW : MANY;
    return n_columns <= SINGLE_COLUMNS ? SINGLE : MANY;
}

size_t single_columns_bytes(const weight_format & format, int64_t n_inputs, int64_t n_columns) {
    return n_columns * column_bytes(format, n_inputs);
}

size_t row_panels_bytes(const weight_format & format, const instruction_set & set, int64_t n_inputs) {
    const int64_t n_panels = divide_up(set.rows_of_item, set.panel_rows);
    return round_up(n_panels * row_panel_bytes(format, std::min(n_inputs, CHUNK_VALUES), set.panel_rows), 64);
}

size_t tile_bytes(const instruction_set & set) {
    return round_up(set.panel_rows * set.panel_columns * sizeof(float), 64);
}

size_t column_panels_bytes(const weight_format & format, const instruction_set & set, int64_t n_inputs, int64_t n_columns) {
    return round_up(divide_up(n_columns, set.panel_columns) * column_panel_bytes(format, n_inputs, set.panel_columns), 64);
}

// Meet, then compute items of rows, each by the thread that is free: item(row, n_rows)
template <typename Item>
void product::share_rows(int64_t rows_of_item, Item item) const {
    if (team.thread == 0)
        team.chunk_set(team.context, team.n_threads);
    team.barrier(team.context);
    for (int64_t row = team.thread * rows_of_item; row < job.n_rows;
         row = (team.n_threads == 1 ? row / rows_of_item + 1 : team.chunk_add(team.context, 1)) * rows_of_item)
        item(row, (int) std::min(rows_of_item, job.n_rows - row));
}

// Each thread scales the columns for itself, which takes less time than to wait for each other.
void product::single_columns(void) const {
    char * columns = work + team.thread * single_columns_bytes(format, job.n_inputs, job.n_columns);
    const size_t bytes = column_bytes(format, job.n_inputs);
    for (int64_t column = 0; column < job.n_columns; column++)
        set.quantize_column(format, (const float *) (job.activations + column * job.activation_bytes), job.n_inputs,
                            columns + column * bytes);
    const int64_t n_parts = divide_up(job.n_rows, ROWS_TOGETHER);
    const int64_t first = n_parts * team.thread / team.n_threads * ROWS_TOGETHER;
    const int64_t last = std::min(job.n_rows, n_parts * (team.thread + 1) / team.n_threads * ROWS_TOGETHER);
    const int64_t at_once = job.n_columns == 1 ? last - first : ROWS_TOGETHER;  // one column reads a thread's rows in its own order
    for (int64_t row = first; row < last; row += at_once)
        for (int64_t column = 0; column < job.n_columns; column++)
            set.multiply_rows(format, job.weights + row * job.row_bytes, job.row_bytes, (int) std::min(at_once, last - row),
                              job.n_inputs, columns + column * bytes, result(row, column));
}

// Threads share the groups of all columns, then the rows: in large parts, since what is read next is prefetched, unless rows are
// read again and again.
void product::few_columns(void) const {
    const int64_t block = std::max(format.group_values, format.block_values), n_blocks = job.n_inputs / block;
    const int64_t first = n_blocks * team.thread / team.n_threads * block;
    const int64_t last = n_blocks * (team.thread + 1) / team.n_threads * block;
    const int64_t width = divide_up(job.n_columns, divide_up(job.n_columns, FEW_COLUMNS));  // nine columns are five and four
    const size_t panel_bytes = column_panel_bytes(format, job.n_inputs, FEW_COLUMNS);
    for (int64_t column = 0; column < job.n_columns; column += width)
        set.quantize_few(format, job.activations + column * job.activation_bytes + first * sizeof(float), job.activation_bytes,
                         (int) std::min(width, job.n_columns - column), last - first,
                         work + column / width * panel_bytes + column_panel_bytes(format, first, FEW_COLUMNS));
    const int64_t wanted_rows = job.n_columns > MANY_COLUMNS ? 0 : divide_up(job.n_rows, ITEMS_PER_THREAD * team.n_threads);
    share_rows(round_up(std::max(wanted_rows, LEAST_ROWS_OF_FEW), 32),
               [&](int64_t row, int n_rows) {
                   set.multiply_few(format, job.weights + row * job.row_bytes, job.row_bytes, n_rows, job.n_inputs, work,
                                    (int) width, (int) job.n_columns, result(row, 0), job.result_bytes);
               });
}

// F16: there is nothing to prepare.
void product::halves(void) const {
    share_rows(SMALL_ITEM, [&](int64_t row, int n_rows) {
        for (int64_t column = 0; column < job.n_columns; column += COLUMNS_OF_HALVES)
            set.multiply_halves(job.weights + row * job.row_bytes, job.row_bytes, n_rows, job.n_inputs,
                                job.activations + column * job.activation_bytes, job.activation_bytes,
                                (int) std::min(COLUMNS_OF_HALVES, job.n_columns - column), result(row, column),
                                job.result_bytes);
    });
}

void product::many_columns(void) const {
    const int64_t n_panels = divide_up(job.n_columns, set.panel_columns);
    const size_t panel_bytes = column_panel_bytes(format, job.n_inputs, set.panel_columns);
    for (int64_t panel = team.thread; panel < n_panels; panel += team.n_threads) {
        const int64_t column = panel * set.panel_columns;
        set.quantize_panel(format, job.activations + column * job.activation_bytes, job.activation_bytes,
                           (int) std::min<int64_t>(set.panel_columns, job.n_columns - column), job.n_inputs,
                           work + panel * panel_bytes);
    }
    if (team.thread == 0)
        team.chunk_set(team.context, team.n_threads);
    team.barrier(team.context);

    const int64_t n_row_parts = divide_up(job.n_rows, set.rows_of_item);
    const int64_t wanted_parts = divide_up(ITEMS_PER_THREAD * team.n_threads, n_row_parts);
    const int64_t least_panels = divide_up(LEAST_COLUMNS_OF_ITEM, set.panel_columns);
    const int64_t panels_of_item = std::max(divide_up(n_panels, wanted_parts), std::min(least_panels, n_panels));
    const int64_t n_column_parts = divide_up(n_panels, panels_of_item);
    float * tile = (float *) (work + column_panels_bytes(format, set, job.n_inputs, job.n_columns) +
                              team.thread * (tile_bytes(set) + row_panels_bytes(format, set, job.n_inputs)));
    char * row_panels = (char *) tile + tile_bytes(set);
    for (int64_t number = team.thread; number < n_row_parts * n_column_parts;
         number = team.n_threads == 1 ? number + 1 : team.chunk_add(team.context, 1)) {
        const int64_t first_panel = number / n_row_parts * panels_of_item;
        item(number % n_row_parts * set.rows_of_item, first_panel, std::min(panels_of_item, n_panels - first_panel), row_panels,
             tile);
    }
}

// Some rows times some panels of columns. Later values are added to the results of earlier ones.
void product::item(int64_t first_row, int64_t first_panel, int64_t n_panels, char * row_panels, float * tile) const {
    const int64_t end_row = std::min(first_row + set.rows_of_item, job.n_rows);
    for (int64_t value = 0; value < job.n_inputs; value += CHUNK_VALUES) {
        const int64_t n_values = std::min(CHUNK_VALUES, job.n_inputs - value);
        const size_t row_bytes = row_panel_bytes(format, n_values, set.panel_rows);
        const char * weights = job.weights + value / format.block_values * format.block_bytes;
        for (int64_t row = first_row; row < end_row; row += set.panel_rows)
            set.unpack_panel(format, weights + row * job.row_bytes, job.row_bytes,
                             (int) std::min<int64_t>(set.panel_rows, end_row - row), n_values,
                             row_panels + (row - first_row) / set.panel_rows * row_bytes);
        for (int64_t panel = first_panel; panel < first_panel + n_panels; panel++)
            for (int64_t row = first_row; row < end_row; row += set.panel_rows)
                panels(row, panel, value, row_panels + (row - first_row) / set.panel_rows * row_bytes, tile);
    }
}

// One panel of rows times one of columns, from `value` on. Where rows are missing, by way of a tile of their own.
void product::panels(int64_t row, int64_t panel, int64_t value, const char * row_panel, float * tile) const {
    const int64_t column = panel * set.panel_columns, n_values = std::min(CHUNK_VALUES, job.n_inputs - value);
    const int n_columns = (int) std::min<int64_t>(set.panel_columns, job.n_columns - column);
    const char * columns = work + panel * column_panel_bytes(format, job.n_inputs, set.panel_columns) +
                           column_panel_bytes(format, value, set.panel_columns);
    const bool start = value == 0;
    if (row + set.panel_rows <= job.n_rows)
        return set.multiply_panels(format, row_panel, columns, n_columns, n_values, start, result(row, column),
                                   job.result_bytes);
    const size_t n_rows = job.n_rows - row;
    if (!start)
        for (int i = 0; i < n_columns; i++)
            memcpy(tile + i * set.panel_rows, result(row, column + i), n_rows * sizeof(float));
    set.multiply_panels(format, row_panel, columns, n_columns, n_values, start, tile, set.panel_rows * sizeof(float));
    for (int i = 0; i < n_columns; i++)
        memcpy(result(row, column + i), tile + i * set.panel_rows, n_rows * sizeof(float));
}

}  // namespace

const char * product_instructions(void) {
    const instruction_set * set = chosen;
    return set ? set->name : "";
}

bool product_use(const char * instructions) {
    for (auto candidate : candidates) {
        const instruction_set * found = candidate();
        if (found && strcmp(found->name, instructions) == 0) {
            chosen = found;
            return true;
        }
    }
    return false;
}

bool product_supports(int type, int64_t n_inputs) {
    const weight_format * format = format_of(type);
    const instruction_set * set = chosen;
    return set && format && (type != F16 || set->multiply_halves) && (type != Q8_0 || set->has_q8_0) &&
           (!is_k(type) || set->multiply_few) && n_inputs > 0 && n_inputs % format->block_values == 0;
}

size_t product_work_bytes(int type, int64_t n_inputs, int64_t n_columns, int n_threads) {
    if (!product_supports(type, n_inputs))
        return 0;
    const weight_format & format = *format_of(type);
    const instruction_set & set = *chosen;
    const path chosen_path = path_of(format, set, n_columns);
    if (chosen_path == SINGLE)
        return 64 + n_threads * single_columns_bytes(format, n_inputs, n_columns);
    if (chosen_path == HALVES)
        return 0;
    if (chosen_path == FEW)
        return 64 + divide_up(n_columns, FEW_COLUMNS) * column_panel_bytes(format, n_inputs, FEW_COLUMNS);
    return 64 + column_panels_bytes(format, set, n_inputs, n_columns) +
           n_threads * (tile_bytes(set) + row_panels_bytes(format, set, n_inputs));
}

void product_run(const product_job * job, const product_team * team) {
    const product one = {*job, *team, *format_of(job->type), *chosen.load(), aligned(job->work)};
    switch (path_of(one.format, one.set, job->n_columns)) {
        case SINGLE: return one.single_columns();
        case FEW: return one.few_columns();
        case MANY: return one.many_columns();
        case HALVES: return one.halves();
    }
}
