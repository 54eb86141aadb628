/* The control: how tests, the demo and `wattline virtual-node` make a node and change it. These
 * calls are not part of NVML; they return 0 or an errno and need no session. */
#include "session.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Makes the file of a node without GPUs; EEXIST if there is one already. */
WV_API int wv_create(const char *path, const char *driver_version)
{
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return errno;
    if (ftruncate(fd, sizeof(wv_map)) != 0) {
        int error = errno;
        close(fd);
        return error;
    }
    void *memory = mmap(NULL, sizeof(wv_map), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int error = errno;
    close(fd);
    if (memory == MAP_FAILED)
        return error;
    wv_map *map = memory;
    map->version = WV_VERSION;
    map->size = sizeof(wv_map);
    snprintf(map->driver_version, sizeof map->driver_version, "%s", driver_version);
    snprintf(map->nvml_version, sizeof map->nvml_version, "13.%s", driver_version);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    error = pthread_mutex_init(&map->lock, &attributes);
    pthread_mutexattr_destroy(&attributes);
    atomic_store(&map->dead_session, NVML_ERROR_UNINITIALIZED);
    map->magic = WV_MAGIC;
    munmap(memory, sizeof(wv_map));
    return error;
}

WV_API int wv_open(const char *path, wv_context **context)
{
    wv_context *opened = calloc(1, sizeof *opened);
    if (!opened)
        return ENOMEM;
    int error = wv_open_context(opened, path);
    if (error) {
        free(opened);
        return error;
    }
    *context = opened;
    return 0;
}

WV_API void wv_close(wv_context *context)
{
    wv_close_context(context);
    free(context);
}

WV_API int64_t wv_clock(void)
{
    return wv_now();
}

/* A GPU takes the slot and comes last in the order. Handles given out before stay good. */
WV_API int wv_add_gpu(wv_context *context, int slot, const wv_spec *spec)
{
    wv_map *map = context->map;
    if (slot < 0 || slot >= WV_GPUS)
        return EINVAL;
    int error = wv_lock(map);
    if (error)
        return error;
    wv_gpu *gpu = &map->gpus[slot];
    if (atomic_load(&gpu->newest)) { /* a slot is one GPU's for ever, so that its log is too */
        wv_unlock(map);
        return EEXIST;
    }
    gpu->spec = *spec;
    gpu->process_count = gpu->mig_count = 0;
    atomic_store(&gpu->lost, 0);
    wv_entry entry = {0};
    entry.t_ns = wv_now();
    entry.persistence = spec->persistence;
    entry.chip_mw = spec->default_mw;
    wv_set_requested(spec, &entry, spec->default_mw);
    wv_publish(gpu, &entry, WV_CREATED, (uint32_t)getpid());
    map->order[map->count] = (uint32_t)slot;
    map->count++;
    atomic_store(&gpu->present, 1);
    wv_unlock(map);
    return 0;
}

WV_API int wv_remove_gpu(wv_context *context, int slot)
{
    wv_map *map = context->map;
    if (slot < 0 || slot >= WV_GPUS || !atomic_load(&map->gpus[slot].present))
        return EINVAL;
    int error = wv_lock(map);
    if (error)
        return error;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < map->count; i++)
        if ((int)map->order[i] != slot)
            map->order[kept++] = map->order[i];
    map->count = kept;
    atomic_store(&map->gpus[slot].present, 0);
    wv_unlock(map);
    return 0;
}

/* A GPU that was taken away is back, last in the order, as after a load of the driver. */
WV_API int wv_return_gpu(wv_context *context, int slot)
{
    wv_map *map = context->map;
    int error = wv_lock(map);
    if (error)
        return error;
    wv_gpu *gpu = slot >= 0 && slot < WV_GPUS ? &map->gpus[slot] : NULL;
    if (!gpu || atomic_load(&gpu->present) || !atomic_load(&gpu->newest)) {
        wv_unlock(map);
        return EINVAL;
    }
    gpu->process_count = 0;
    atomic_store(&gpu->lost, 0);
    wv_reset_gpu(gpu, wv_now(), WV_RELOAD);
    map->order[map->count] = (uint32_t)slot;
    map->count++;
    atomic_store(&gpu->present, 1);
    wv_unlock(map);
    return 0;
}

/* A new order of the GPUs; handles from before are stale when `stale` is set. */
WV_API int wv_reorder(wv_context *context, const uint32_t *order, uint32_t count, int stale)
{
    wv_map *map = context->map;
    int error = wv_lock(map);
    if (error)
        return error;
    uint64_t seen = 0;
    for (uint32_t i = 0; i < count && i < WV_GPUS; i++)
        if (order[i] < WV_GPUS && atomic_load(&map->gpus[order[i]].present))
            seen |= 1ull << order[i];
    if (count != map->count || __builtin_popcountll(seen) != (int)count) {
        wv_unlock(map);
        return EINVAL;
    }
    memcpy(map->order, order, count * sizeof *order);
    if (stale)
        atomic_fetch_add(&map->enumeration, 1);
    wv_unlock(map);
    return 0;
}

/* Unloads the driver and loads it again after `absent_ns`: default limits, dead sessions. */
WV_API int wv_reload(wv_context *context, int64_t absent_ns, int dead_session)
{
    wv_map *map = context->map;
    int error = wv_lock(map);
    if (error)
        return error;
    int64_t now = wv_now();
    for (int slot = 0; slot < WV_GPUS; slot++) {
        wv_gpu *gpu = &map->gpus[slot];
        if (!atomic_load(&gpu->present))
            continue;
        gpu->process_count = 0;
        atomic_store(&gpu->lost, 0);
        wv_reset_gpu(gpu, now, WV_RELOAD);
    }
    memset(map->clients, 0, sizeof map->clients);
    atomic_store(&map->dead_session, dead_session);
    atomic_store(&map->driver_absent_until_ns, absent_ns > 0 ? now + absent_ns : 0);
    atomic_fetch_add(&map->enumeration, 1);
    atomic_fetch_add(&map->driver_load, 1);
    wv_unlock(map);
    return 0;
}

/* What the control may set by hand, as `wv_set` names it. */
enum wv_setting { SET_LOAD, SET_REQUESTED, SET_CEILING, SET_FLOOR, SET_PERSISTENCE, SET_MIG };

WV_API int wv_set(wv_context *context, int slot, int setting, uint32_t value, uint32_t cause)
{
    wv_map *map = context->map;
    if (slot < 0 || slot >= WV_GPUS || !atomic_load(&map->gpus[slot].present))
        return EINVAL;
    wv_gpu *gpu = &map->gpus[slot];
    wv_rival_due(map, gpu, wv_now());
    int error = wv_lock(map);
    if (error)
        return error;
    wv_entry last = wv_newest(gpu);
    wv_entry entry = wv_advance(gpu, &last, wv_now());
    if (setting == SET_LOAD)
        entry.load_mw = value;
    else if (setting == SET_CEILING)
        entry.ceiling_mw = value;
    else if (setting == SET_FLOOR)
        entry.floor_mw = value;
    else if (setting == SET_PERSISTENCE)
        entry.persistence = value;
    else if (setting == SET_MIG)
        entry.mig = value;
    wv_set_requested(&gpu->spec, &entry, setting == SET_REQUESTED ? value : entry.requested_mw);
    wv_publish(gpu, &entry, cause, (uint32_t)getpid());
    wv_unlock(map);
    return 0;
}

WV_API int wv_set_processes(wv_context *context, int slot, const wv_process *processes,
                            uint32_t count)
{
    wv_map *map = context->map;
    if (slot < 0 || slot >= WV_GPUS || count > WV_PROCESSES)
        return EINVAL;
    int error = wv_lock(map);
    if (error)
        return error;
    wv_gpu *gpu = &map->gpus[slot];
    gpu->process_count = 0; /* so that one who is killed here leaves a list that is whole */
    memcpy(gpu->processes, processes, count * sizeof *processes);
    gpu->process_count = count;
    wv_sweep_clients(map, wv_now());
    wv_unlock(map);
    return 0;
}

WV_API int wv_set_migs(wv_context *context, int slot, const wv_mig *migs, uint32_t count)
{
    wv_map *map = context->map;
    if (slot < 0 || slot >= WV_GPUS || count > WV_MIGS)
        return EINVAL;
    int error = wv_lock(map);
    if (error)
        return error;
    wv_gpu *gpu = &map->gpus[slot];
    gpu->mig_count = 0;
    memcpy(gpu->migs, migs, count * sizeof *migs);
    gpu->mig_count = count;
    wv_unlock(map);
    return wv_set(context, slot, SET_MIG, count > 0, WV_CONTROL);
}

/* `slot` WV_GPUS: calls that concern the node. `count` 0 clears, -1 lasts until cleared. */
WV_API int wv_set_fault(wv_context *context, int slot, int group, int code, int32_t count,
                        uint32_t delay_us)
{
    if (slot < 0 || slot > WV_GPUS || group < 0 || group >= WV_GROUPS)
        return EINVAL;
    wv_fault *fault = &context->map->faults[slot][group];
    atomic_store(&fault->remaining, 0);
    atomic_store(&fault->code, code);
    atomic_store(&fault->delay_us, delay_us);
    atomic_store(&fault->remaining, count);
    return 0;
}

/* `xid` 0: the GPU is back. */
WV_API int wv_set_lost(wv_context *context, int slot, uint32_t xid)
{
    if (slot < 0 || slot >= WV_GPUS)
        return EINVAL;
    atomic_store(&context->map->gpus[slot].lost, xid);
    if (xid)
        atomic_fetch_add(&context->map->gpus[slot].xid_count, 1);
    return 0;
}

WV_API int wv_hide_fields(wv_context *context, int slot, const uint32_t *ids, uint32_t count)
{
    if (slot < 0 || slot >= WV_GPUS || count > WV_HIDDEN_FIELDS)
        return EINVAL;
    for (uint32_t i = 0; i < WV_HIDDEN_FIELDS; i++)
        atomic_store(&context->map->gpus[slot].hidden_fields[i], i < count ? ids[i] : 0);
    return 0;
}

/* Another writer: `count` writes (-1: without end), the first at `first_ns`; `count` 0 ends it. */
WV_API int wv_set_rival(wv_context *context, int slot, uint32_t limit_mw, int64_t first_ns,
                        int64_t period_ns, int32_t count)
{
    wv_map *map = context->map;
    if (slot < 0 || slot >= WV_GPUS)
        return EINVAL;
    wv_rival_due(map, &map->gpus[slot], wv_now()); /* what was due until now has happened */
    int error = wv_lock(map);
    if (error)
        return error;
    wv_rival *rival = &map->gpus[slot].rival;
    atomic_store(&rival->next_ns, 0);
    rival->limit_mw = limit_mw;
    rival->period_ns = period_ns;
    rival->remaining = count;
    atomic_store(&rival->next_ns, count ? first_ns : 0);
    wv_unlock(map);
    return 0;
}

typedef struct {
    uint32_t count;
    uint32_t order[WV_GPUS];
    uint32_t present[WV_GPUS];
    uint32_t lost[WV_GPUS];
    uint32_t clients[WV_CLIENTS]; /* process ids; 0: none */
} wv_overview;

/* A writer that was stopped with the lock must not blind who looks: dead clients wait, then. */
WV_API int wv_read_node(wv_context *context, wv_overview *view)
{
    wv_map *map = context->map;
    int error = wv_lock_within(map, 100000000);
    if (error && error != ETIMEDOUT)
        return error;
    if (!error)
        wv_sweep_clients(map, wv_now());
    view->count = map->count;
    memcpy(view->order, map->order, sizeof view->order);
    for (int slot = 0; slot < WV_GPUS; slot++) {
        view->present[slot] = atomic_load(&map->gpus[slot].present);
        view->lost[slot] = atomic_load(&map->gpus[slot].lost);
    }
    for (int i = 0; i < WV_CLIENTS; i++)
        view->clients[i] = map->clients[i].used ? map->clients[i].pid : 0;
    if (!error)
        wv_unlock(map);
    return 0;
}

WV_API int wv_read_spec(wv_context *context, int slot, wv_spec *spec)
{
    if (slot < 0 || slot >= WV_GPUS)
        return EINVAL;
    *spec = context->map->gpus[slot].spec;
    return 0;
}

/* `at_ns` 0: now; else as it will be at that time if nothing happens until then. */
WV_API int wv_read_gpu(wv_context *context, int slot, int64_t at_ns, wv_view *view)
{
    if (slot < 0 || slot >= WV_GPUS || !atomic_load(&context->map->gpus[slot].newest))
        return EINVAL;
    wv_gpu *gpu = &context->map->gpus[slot];
    int64_t now = wv_now();
    wv_rival_due(context->map, gpu, now);
    wv_look(gpu, at_ns ? at_ns : now, view);
    return 0;
}

WV_API uint32_t wv_read_processes(wv_context *context, int slot, wv_process *processes)
{
    if (slot < 0 || slot >= WV_GPUS || wv_lock(context->map) != 0)
        return 0;
    wv_gpu *gpu = &context->map->gpus[slot];
    memcpy(processes, gpu->processes, sizeof gpu->processes);
    uint32_t count = gpu->process_count;
    wv_unlock(context->map);
    return count;
}

WV_API uint64_t wv_read_calls(wv_context *context, int slot, int group)
{
    if (slot < 0 || slot > WV_GPUS || group < 0 || group >= WV_GROUPS)
        return 0;
    return atomic_load(&context->map->calls[slot][group]);
}

/* Copies entries after `after` into `out` and returns how many; `*lost` are no longer there. */
WV_API uint32_t wv_read_log(wv_context *context, int slot, uint64_t after, wv_entry *out,
                            uint32_t room, uint64_t *lost)
{
    *lost = 0;
    if (slot < 0 || slot >= WV_GPUS)
        return 0;
    wv_gpu *gpu = &context->map->gpus[slot];
    wv_rival_due(context->map, gpu, wv_now());
    uint64_t newest = atomic_load_explicit(&gpu->newest, memory_order_acquire);
    uint64_t first = after + 1;
    if (newest >= WV_KEPT && first < newest - WV_KEPT + 1) {
        *lost = newest - WV_KEPT + 1 - first;
        first = newest - WV_KEPT + 1;
    }
    uint32_t count = 0;
    for (uint64_t seq = first; seq <= newest && count < room; seq++)
        out[count++] = gpu->ring[seq % WV_RING];
    return count;
}

/* For tests: takes the lock and never gives it back, as a process that is killed inside would. */
WV_API int wv_hold_lock(wv_context *context)
{
    return wv_lock(context->map);
}
