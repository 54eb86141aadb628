/* The shared state of the virtual GPUs: mapping, lock, rings, and what a GPU draws over time. */
#include "state.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOCK_WAIT_NS 10000000000ll
#define AVERAGE_NS 1000000000ll /* NVML averages power over a second on Hopper and Blackwell */

/* How imperfectly a limiter holds its mean, as the simulator's plant has it: the mean of a GPU at
 * its limit, and the deviation of one sample as a share of the draw above idle. Both are fitted to
 * traces of H100s at 700 W (docs/concepts/plant.md). */
#define MEAN_FRACTION 0.987
#define SAMPLE_SIGMA 0.103
#define SAMPLE_NS 100000000ll

int64_t wv_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* 0; or an errno; EPROTO: the file is not a state of this version. */
int wv_open_context(wv_context *context, const char *path)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return errno;
    struct stat status;
    if (fstat(fd, &status) != 0 || status.st_size != (off_t)sizeof(wv_map)) {
        close(fd);
        return EPROTO;
    }
    void *memory = mmap(NULL, sizeof(wv_map), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int error = errno;
    close(fd);
    if (memory == MAP_FAILED)
        return error;
    wv_map *map = memory;
    if (map->magic != WV_MAGIC || map->version != WV_VERSION || map->size != sizeof(wv_map)) {
        munmap(memory, sizeof(wv_map));
        return EPROTO;
    }
    context->map = map;
    context->device = (uint64_t)status.st_dev;
    context->inode = (uint64_t)status.st_ino;
    return 0;
}

void wv_close_context(wv_context *context)
{
    munmap(context->map, sizeof(wv_map));
    context->map = NULL;
}

/* 0, or an errno. A holder that died leaves nothing half done: entries are published whole. */
int wv_lock_within(wv_map *map, int64_t wait_ns)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    int64_t end_ns = until.tv_nsec + wait_ns;
    until.tv_sec += end_ns / 1000000000;
    until.tv_nsec = end_ns % 1000000000;
    int error = pthread_mutex_clocklock(&map->lock, CLOCK_MONOTONIC, &until);
    if (error == EOWNERDEAD) {
        pthread_mutex_consistent(&map->lock);
        return 0;
    }
    return error;
}

int wv_lock(wv_map *map)
{
    return wv_lock_within(map, LOCK_WAIT_NS);
}

void wv_unlock(wv_map *map)
{
    pthread_mutex_unlock(&map->lock);
}

/* The entry in force. The ring is so long that a slot is not used again while it is copied,
 * unless the reader was stopped in the middle, which the second look finds out. */
wv_entry wv_newest(wv_gpu *gpu)
{
    wv_entry copy;
    uint64_t seq;
    do {
        seq = atomic_load_explicit(&gpu->newest, memory_order_acquire);
        copy = gpu->ring[seq % WV_RING];
        atomic_thread_fence(memory_order_acquire);
    } while (atomic_load_explicit(&gpu->newest, memory_order_relaxed) - seq >= WV_RING - 1);
    return copy;
}

/* What the work would draw with no power limit. Power above idle goes with the square of the clock
 * when a ceiling on the clock is set: an assumption, between the linear and the cubic law. */
static double demand_mw(const wv_spec *spec, const wv_entry *entry)
{
    double above = (double)entry->load_mw - spec->idle_mw;
    if (above < 0)
        above = 0;
    if (entry->clock_max_mhz && entry->clock_max_mhz < spec->max_mhz) {
        double share = (double)entry->clock_max_mhz / spec->max_mhz;
        above *= share * share;
    }
    return spec->idle_mw + above;
}

static double draw_mw(const wv_spec *spec, double demand, double chip)
{
    double held = chip * MEAN_FRACTION;
    held = demand < held ? demand : held;
    return held > spec->idle_mw ? held : spec->idle_mw;
}

/* Adds what a stretch brings in which the chip obeys one limit. */
static void add_stretch(const wv_spec *spec, wv_entry *entry, double demand, int64_t until_ns)
{
    double length_ns = (double)(until_ns - entry->t_ns);
    entry->energy_mj += draw_mw(spec, demand, entry->chip_mw) * length_ns * 1e-9;
    if (entry->chip_mw * MEAN_FRACTION < demand)
        entry->capped_ns += length_ns;
    entry->t_ns = until_ns;
}

/* The same GPU later: what the chip obeys, the energy and the held-back time are carried on. The
 * chip obeys each change of the register when the settle time has passed since, in both directions.
 * Of more than WV_KEPT changes within the settle time, the oldest are passed over. */
wv_entry wv_advance(wv_gpu *gpu, const wv_entry *from, int64_t now_ns)
{
    const wv_spec *spec = &gpu->spec;
    wv_entry entry = *from;
    double demand = demand_mw(spec, from);
    uint64_t first = from->seq;
    for (int back = 0; back < WV_KEPT && first > 1; back++) {
        if (gpu->ring[(first - 1) % WV_RING].t_ns + spec->settle_ns <= from->t_ns)
            break;
        first--;
    }
    for (uint64_t seq = first; seq <= from->seq; seq++) {
        const wv_entry *change = &gpu->ring[seq % WV_RING];
        int64_t at_ns = change->t_ns + spec->settle_ns;
        if (at_ns > now_ns)
            break;
        if (at_ns > entry.t_ns)
            add_stretch(spec, &entry, demand, at_ns);
        if (at_ns > from->t_ns)
            entry.chip_mw = change->enforced_mw;
    }
    if (now_ns > entry.t_ns)
        add_stretch(spec, &entry, demand, now_ns);
    return entry;
}

/* Makes `entry` the one in force; the caller holds the lock. */
void wv_publish(wv_gpu *gpu, wv_entry *entry, uint32_t cause, uint32_t pid)
{
    uint64_t seq = atomic_load_explicit(&gpu->newest, memory_order_relaxed);
    entry->before_mw = seq ? gpu->ring[seq % WV_RING].enforced_mw : entry->enforced_mw;
    entry->seq = seq + 1;
    entry->cause = cause;
    entry->pid = pid;
    gpu->ring[(seq + 1) % WV_RING] = *entry;
    atomic_store_explicit(&gpu->newest, seq + 1, memory_order_release);
}

/* The enforced limit is the requested one unless something out of band holds it lower or higher. */
void wv_set_requested(const wv_spec *spec, wv_entry *entry, uint32_t requested_mw)
{
    entry->requested_mw = requested_mw;
    entry->enforced_mw = requested_mw;
    if (entry->floor_mw && entry->enforced_mw < entry->floor_mw)
        entry->enforced_mw = entry->floor_mw;
    if (entry->ceiling_mw && entry->enforced_mw > entry->ceiling_mw)
        entry->enforced_mw = entry->ceiling_mw;
    if (spec->settle_ns <= 0)
        entry->chip_mw = entry->enforced_mw;
}

/* As after a load of the driver: default limit, no lock on the clocks, counters from zero. What is
 * out of band stays. The caller holds the lock. */
void wv_reset_gpu(wv_gpu *gpu, int64_t now_ns, uint32_t cause)
{
    wv_entry last = wv_newest(gpu);
    wv_entry entry = wv_advance(gpu, &last, now_ns);
    entry.clock_min_mhz = entry.clock_max_mhz = 0;
    entry.energy_mj = entry.capped_ns = 0;
    wv_set_requested(&gpu->spec, &entry, gpu->spec.default_mw);
    wv_publish(gpu, &entry, cause, 0);
}

/* Energy a second ago, and how long ago that was: less than a second after a load of the driver. */
static double average_mw(wv_gpu *gpu, const wv_entry *now)
{
    wv_entry past = *now;
    uint64_t seq = now->seq;
    int64_t target = now->t_ns - AVERAGE_NS;
    for (int back = 0; back < WV_KEPT; back++) {
        past = gpu->ring[seq % WV_RING];
        if (past.t_ns <= target || past.seq <= 1 || past.cause == WV_RELOAD ||
            past.cause == WV_UNLOAD)
            break;
        seq--;
    }
    if (past.t_ns < target)
        past = wv_advance(gpu, &past, target);
    double span_ns = (double)(now->t_ns - past.t_ns);
    if (span_ns <= 0)
        return -1;
    return (now->energy_mj - past.energy_mj) / span_ns * 1e9;
}

/* A standard normal number that belongs to the GPU and the tenth of a second: the same for all who
 * look, and none that must be stored. The mix is splitmix64's, the transform Box and Muller's. */
static double deviation(const wv_spec *spec, int64_t now_ns)
{
    uint64_t mix = (uint64_t)(now_ns / SAMPLE_NS) * WV_GPUS + spec->minor;
    double parts[2];
    for (int i = 0; i < 2; i++) {
        mix += 0x9e3779b97f4a7c15ull;
        uint64_t bits = mix;
        bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9ull;
        bits = (bits ^ bits >> 27) * 0x94d049bb133111ebull;
        bits ^= bits >> 31;
        parts[i] = ((double)(bits >> 11) + 0.5) / 9007199254740992.0; /* 2^53: never 0 */
    }
    return sqrt(-2 * log(parts[0])) * cos(6.283185307179586 * parts[1]);
}

void wv_look(wv_gpu *gpu, int64_t now_ns, wv_view *view)
{
    const wv_spec *spec = &gpu->spec;
    wv_entry entry = wv_newest(gpu);
    wv_entry now = wv_advance(gpu, &entry, now_ns);
    double demand = demand_mw(spec, &entry);
    view->entry = entry;
    view->chip_mw = now.chip_mw;
    view->draw_mw = draw_mw(spec, demand, now.chip_mw);
    double above = view->draw_mw - spec->idle_mw;
    view->instant_mw = view->draw_mw + above * SAMPLE_SIGMA * deviation(spec, now_ns);
    if (view->instant_mw < 0)
        view->instant_mw = 0;
    view->energy_mj = now.energy_mj;
    view->capped_ns = now.capped_ns;
    view->capped = now.chip_mw * MEAN_FRACTION < demand;
    view->average_mw = average_mw(gpu, &now);
    if (view->average_mw < 0)
        view->average_mw = view->draw_mw;
    double top = spec->max_mhz;
    if (entry.clock_max_mhz && entry.clock_max_mhz < top)
        top = entry.clock_max_mhz;
    double clock = spec->min_mhz;
    if (demand > spec->idle_mw)
        clock = top * sqrt((view->draw_mw - spec->idle_mw) / (demand - spec->idle_mw));
    if (clock < spec->min_mhz)
        clock = spec->min_mhz;
    if (entry.clock_min_mhz > clock && !view->capped)
        clock = entry.clock_min_mhz < top ? entry.clock_min_mhz : top;
    view->clock_mhz = (uint32_t)(clock + 0.5);
}

/* Makes the writes of another writer that have come due, at the times at which they were due. */
void wv_rival_due(wv_map *map, wv_gpu *gpu, int64_t now_ns)
{
    int64_t next = atomic_load_explicit(&gpu->rival.next_ns, memory_order_acquire);
    if (next == 0 || now_ns < next || wv_lock(map) != 0)
        return;
    wv_rival *rival = &gpu->rival;
    next = atomic_load_explicit(&rival->next_ns, memory_order_relaxed);
    if (next != 0 && now_ns >= next) {
        wv_entry last = wv_newest(gpu);
        int64_t at = next > last.t_ns ? next : last.t_ns;
        wv_entry entry = wv_advance(gpu, &last, at);
        wv_set_requested(&gpu->spec, &entry, rival->limit_mw);
        if (entry.requested_mw != last.requested_mw)
            wv_publish(gpu, &entry, WV_RIVAL, 0);
        int64_t writes = rival->period_ns > 0 ? 1 + (now_ns - next) / rival->period_ns : 1;
        if (rival->remaining > 0)
            rival->remaining = writes < rival->remaining ? rival->remaining - (int32_t)writes : 0;
        int over = rival->period_ns <= 0 || rival->remaining == 0;
        atomic_store_explicit(&rival->next_ns, over ? 0 : next + writes * rival->period_ns,
                              memory_order_release);
    }
    wv_unlock(map);
}
