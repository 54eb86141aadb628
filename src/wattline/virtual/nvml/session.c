/* Calls of NVML that open and close a session and find GPUs. */
#include "session.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

/* Mappings stay until the process ends: another thread may still be inside a call. */
typedef struct known_context {
    wv_context context;
    struct known_context *next;
} known_context;

static pthread_mutex_t session_lock = PTHREAD_MUTEX_INITIALIZER;
static known_context *known;
static _Atomic(wv_map *) session_map;
static _Atomic uint32_t session_load;
static unsigned int references;

static int find_context(wv_map **map)
{
    const char *path = getenv("WATTLINE_VIRTUAL_GPUS");
    struct stat status;
    if (!path || stat(path, &status) != 0)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    for (known_context *one = known; one; one = one->next) {
        if (one->context.device == status.st_dev && one->context.inode == status.st_ino) {
            *map = one->context.map;
            return NVML_SUCCESS;
        }
    }
    known_context *fresh = malloc(sizeof *fresh);
    if (!fresh)
        return NVML_ERROR_INSUFFICIENT_RESOURCES;
    int error = wv_open_context(&fresh->context, path);
    if (error)
        free(fresh);
    if (error == EACCES || error == EPERM)
        return NVML_ERROR_NO_PERMISSION;
    if (error == EPROTO)
        return NVML_ERROR_LIB_RM_VERSION_MISMATCH;
    if (error)
        return NVML_ERROR_DRIVER_NOT_LOADED;
    fresh->next = known;
    known = fresh;
    *map = fresh->context.map;
    return NVML_SUCCESS;
}

int wv_lock_code(wv_map *map)
{
    int error = wv_lock(map);
    if (error == 0)
        return NVML_SUCCESS;
    return error == ETIMEDOUT ? NVML_ERROR_TIMEOUT : NVML_ERROR_UNKNOWN;
}

static int enter(wv_map *map)
{
    int code = wv_take_fault(map, WV_NODE, WV_SESSION);
    if (code)
        return abs(code);
    if (wv_now() < atomic_load(&map->driver_absent_until_ns))
        return NVML_ERROR_DRIVER_NOT_LOADED;
    code = wv_lock_code(map);
    if (code)
        return code;
    wv_sweep_clients(map, wv_now());
    int error = wv_client_enter(map);
    wv_unlock(map);
    return error ? NVML_ERROR_INSUFFICIENT_RESOURCES : NVML_SUCCESS;
}

WV_API int nvmlInitWithFlags(unsigned int flags)
{
    (void)flags;
    pthread_mutex_lock(&session_lock);
    wv_map *map = atomic_load(&session_map);
    int dead = map && atomic_load(&session_load) != atomic_load(&map->driver_load);
    int code = NVML_SUCCESS;
    if (references == 0 || dead) {
        code = find_context(&map);
        if (code == NVML_SUCCESS)
            code = enter(map);
        if (code == NVML_SUCCESS) {
            atomic_store(&session_load, atomic_load(&map->driver_load));
            atomic_store(&session_map, map);
        }
    }
    if (code == NVML_SUCCESS)
        references++;
    pthread_mutex_unlock(&session_lock);
    return code;
}

WV_API int nvmlInit_v2(void)
{
    return nvmlInitWithFlags(0);
}

WV_API int nvmlInit(void)
{
    return nvmlInitWithFlags(0);
}

WV_API int nvmlShutdown(void)
{
    pthread_mutex_lock(&session_lock);
    int code = references ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
    if (references && --references == 0) {
        wv_map *map = atomic_load(&session_map);
        atomic_store(&session_map, NULL);
        code = wv_lock_code(map);
        if (code == NVML_SUCCESS) {
            wv_client_leave(map);
            wv_sweep_clients(map, wv_now());
            wv_unlock(map);
        }
    }
    pthread_mutex_unlock(&session_lock);
    return code;
}

/* Begins a call that concerns the node; a fault of `group` may end it. */
int wv_session(int group, wv_map **map)
{
    wv_map *found = atomic_load(&session_map);
    if (!found)
        return NVML_ERROR_UNINITIALIZED;
    int code = wv_take_fault(found, WV_NODE, group);
    if (code)
        return abs(code);
    if (atomic_load(&session_load) != atomic_load(&found->driver_load))
        return atomic_load(&found->dead_session);
    *map = found;
    return NVML_SUCCESS;
}

/* Handles are numbers, never addresses: mark, enumeration, slot, MIG instance + 1. */
nvmlDevice_t wv_handle(wv_map *map, int slot, int mig)
{
    uint64_t number = 0x57ull << 56;
    number |= (uint64_t)atomic_load(&map->enumeration) << 16;
    number |= (uint64_t)(unsigned int)slot << 8 | (uint64_t)(unsigned int)(mig + 1);
    return (nvmlDevice_t)(uintptr_t)number;
}

/* Begins a call on a GPU or a MIG instance: session, handle, loss and faults are checked. A fault
 * with a negative code lets the call be done and then fail: the writes of limits heed it. */
int wv_begin(nvmlDevice_t device, int group, wv_call *call)
{
    wv_map *map = atomic_load(&session_map);
    if (!map)
        return NVML_ERROR_UNINITIALIZED;
    uint64_t number = (uint64_t)(uintptr_t)device;
    unsigned int slot = number >> 8 & 0xff;
    if (number >> 56 != 0x57 || slot >= WV_GPUS || (number & 0xff) > WV_MIGS)
        return NVML_ERROR_INVALID_ARGUMENT;
    int code = wv_take_fault(map, (int)slot, group);
    call->late = code < 0 ? -code : NVML_SUCCESS;
    if (code > 0)
        return code;
    if (atomic_load(&session_load) != atomic_load(&map->driver_load))
        return atomic_load(&map->dead_session);
    if ((uint32_t)(number >> 16) != atomic_load(&map->enumeration))
        return NVML_ERROR_INVALID_ARGUMENT;
    wv_gpu *gpu = &map->gpus[slot];
    if (atomic_load(&gpu->lost) || !atomic_load(&gpu->present))
        return NVML_ERROR_GPU_IS_LOST;
    call->map = map;
    call->gpu = gpu;
    call->slot = (int)slot;
    call->mig = (int)(number & 0xff) - 1;
    call->now_ns = wv_now();
    wv_rival_due(map, gpu, call->now_ns);
    return NVML_SUCCESS;
}

/* The same for calls that a MIG instance does not support: power, clocks, persistence. */
int wv_begin_whole(nvmlDevice_t device, int group, wv_call *call)
{
    int code = wv_begin(device, group, call);
    if (code == NVML_SUCCESS && call->mig >= 0)
        return NVML_ERROR_NOT_SUPPORTED;
    return code;
}

int wv_put_text(const char *text, char *out, unsigned int length)
{
    if (!out)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (strlen(text) + 1 > length)
        return NVML_ERROR_INSUFFICIENT_SIZE;
    memcpy(out, text, strlen(text) + 1);
    return NVML_SUCCESS;
}

WV_API int nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
    wv_map *map;
    int code = wv_session(WV_SESSION, &map);
    return code ? code : wv_put_text(map->driver_version, version, length);
}

WV_API int nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
    wv_map *map;
    int code = wv_session(WV_SESSION, &map);
    return code ? code : wv_put_text(map->nvml_version, version, length);
}

WV_API int nvmlDeviceGetCount_v2(unsigned int *count)
{
    wv_map *map;
    int code = wv_session(WV_ENUMERATION, &map);
    if (code)
        return code;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = map->count;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetCount(unsigned int *count)
{
    return nvmlDeviceGetCount_v2(count);
}

/* Finds a handle under the lock, so that a change of the order is seen whole. */
static int find_handle(int (*matches)(wv_map *, unsigned int, const void *, int *),
                       const void *key, nvmlDevice_t *device)
{
    wv_map *map;
    int code = wv_session(WV_ENUMERATION, &map);
    if (code)
        return code;
    if (!key || !device)
        return NVML_ERROR_INVALID_ARGUMENT;
    code = wv_lock_code(map);
    if (code)
        return code;
    code = NVML_ERROR_NOT_FOUND;
    for (unsigned int index = 0; index < map->count && code == NVML_ERROR_NOT_FOUND; index++) {
        int mig = -1;
        int slot = (int)map->order[index];
        if (!matches(map, index, key, &mig))
            continue;
        code = atomic_load(&map->gpus[slot].lost) ? NVML_ERROR_GPU_IS_LOST : NVML_SUCCESS;
        if (code == NVML_SUCCESS)
            *device = wv_handle(map, slot, mig);
    }
    wv_unlock(map);
    return code;
}

static int index_matches(wv_map *map, unsigned int index, const void *key, int *mig)
{
    (void)map;
    (void)mig;
    return index == *(const unsigned int *)key;
}

static int uuid_matches(wv_map *map, unsigned int index, const void *key, int *mig)
{
    wv_gpu *gpu = &map->gpus[map->order[index]];
    if (strcmp(gpu->spec.uuid, key) == 0)
        return 1;
    for (unsigned int i = 0; i < gpu->mig_count && i < WV_MIGS; i++) {
        if (strcmp(gpu->migs[i].uuid, key) == 0) {
            *mig = (int)i;
            return 1;
        }
    }
    return 0;
}

static int bus_matches(wv_map *map, unsigned int index, const void *key, int *mig)
{
    (void)mig;
    const wv_spec *spec = &map->gpus[map->order[index]].spec;
    /* Both the domain of eight digits and the older one of four are understood. */
    return strcasecmp(spec->bus_id, key) == 0 || strcasecmp(spec->bus_id + 4, key) == 0;
}

WV_API int nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
    int code = find_handle(index_matches, &index, device);
    return code == NVML_ERROR_NOT_FOUND ? NVML_ERROR_INVALID_ARGUMENT : code;
}

WV_API int nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
    return nvmlDeviceGetHandleByIndex_v2(index, device);
}

WV_API int nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
    return find_handle(uuid_matches, uuid, device);
}

WV_API int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
    return find_handle(bus_matches, bus_id, device);
}

static const struct {
    int code;
    const char *text;
} error_texts[] = {
    {NVML_SUCCESS, "Success"},
    {NVML_ERROR_UNINITIALIZED, "Uninitialized"},
    {NVML_ERROR_INVALID_ARGUMENT, "Invalid Argument"},
    {NVML_ERROR_NOT_SUPPORTED, "Not Supported"},
    {NVML_ERROR_NO_PERMISSION, "Insufficient Permissions"},
    {NVML_ERROR_NOT_FOUND, "Not Found"},
    {NVML_ERROR_INSUFFICIENT_SIZE, "Insufficient Size"},
    {NVML_ERROR_DRIVER_NOT_LOADED, "Driver Not Loaded"},
    {NVML_ERROR_TIMEOUT, "Timeout"},
    {NVML_ERROR_GPU_IS_LOST, "GPU is lost"},
    {NVML_ERROR_LIB_RM_VERSION_MISMATCH, "RM has detected an NVML/RM version mismatch."},
    {NVML_ERROR_INSUFFICIENT_RESOURCES, "Insufficient Resources"},
    {NVML_ERROR_ARGUMENT_VERSION_MISMATCH, "The provided version is invalid/unsupported"},
};

WV_API const char *nvmlErrorString(int result)
{
    for (size_t i = 0; i < sizeof error_texts / sizeof error_texts[0]; i++)
        if (error_texts[i].code == result)
            return error_texts[i].text;
    return "Unknown Error";
}
