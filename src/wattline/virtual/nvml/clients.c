/* Who uses the driver, and which faults its calls meet. */
#include "state.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Start time of a process in clock ticks; 0: there is no such process, or it has ended. */
static uint64_t process_start(uint32_t pid)
{
    char path[32];
    char text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    const char *after = strrchr(text, ')'); /* the name before it may hold anything */
    char state;
    unsigned long long start;
    if (!after || sscanf(after + 1,
                         " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d "
                         "%*d %*d %llu",
                         &state, &start) != 2)
        return 0;
    return state == 'Z' || state == 'X' ? 0 : start;
}

/* Forgets clients that have died, then unloads the driver where nobody uses it: a GPU without
 * persistence mode, without clients of NVML and without processes returns to its default limit.
 * The caller holds the lock. */
void wv_sweep_clients(wv_map *map, int64_t now_ns)
{
    int live = 0;
    for (int i = 0; i < WV_CLIENTS; i++) {
        wv_client *client = &map->clients[i];
        if (!client->used)
            continue;
        if (process_start(client->pid) == client->start_ticks)
            live++;
        else
            client->used = 0;
    }
    if (live)
        return;
    for (int slot = 0; slot < WV_GPUS; slot++) {
        wv_gpu *gpu = &map->gpus[slot];
        if (!atomic_load(&gpu->present) || gpu->process_count)
            continue;
        wv_entry entry = wv_newest(gpu);
        int changed = entry.requested_mw != gpu->spec.default_mw || entry.clock_max_mhz;
        if (!entry.persistence && changed)
            wv_reset_gpu(gpu, now_ns, WV_UNLOAD);
    }
}

/* 0, or an errno. The caller holds the lock. */
int wv_client_enter(wv_map *map)
{
    uint32_t pid = (uint32_t)getpid();
    uint64_t start = process_start(pid);
    wv_client *spare = NULL;
    for (int i = 0; i < WV_CLIENTS; i++) {
        wv_client *client = &map->clients[i];
        if (client->used && client->pid == pid && client->start_ticks == start)
            return 0;
        if (!client->used && !spare)
            spare = client;
    }
    if (!spare)
        return ENOSPC;
    spare->pid = pid;
    spare->start_ticks = start;
    spare->used = 1;
    return 0;
}

void wv_client_leave(wv_map *map)
{
    uint32_t pid = (uint32_t)getpid();
    for (int i = 0; i < WV_CLIENTS; i++)
        if (map->clients[i].used && map->clients[i].pid == pid)
            map->clients[i].used = 0;
}

static int take_one(wv_fault *fault)
{
    int32_t left = atomic_load_explicit(&fault->remaining, memory_order_acquire);
    while (left > 0)
        if (atomic_compare_exchange_weak(&fault->remaining, &left, left - 1))
            break;
    if (left == 0)
        return 0;
    uint32_t delay_us = atomic_load(&fault->delay_us);
    if (delay_us) {
        struct timespec wait = {delay_us / 1000000u, (long)(delay_us % 1000000u) * 1000};
        while (nanosleep(&wait, &wait) != 0 && errno == EINTR)
            continue;
    }
    return atomic_load(&fault->code);
}

/* Counts a call and returns the code of the fault that it meets, 0 for none. May sleep. */
int wv_take_fault(wv_map *map, int slot, int group)
{
    atomic_fetch_add_explicit(&map->calls[slot][group], 1, memory_order_relaxed);
    int code = take_one(&map->faults[slot][WV_ALL]);
    if (code == 0)
        code = take_one(&map->faults[slot][group]);
    return code;
}
