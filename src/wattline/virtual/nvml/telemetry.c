/* Calls of NVML on use, memory, temperature, samples and events. */
#include "session.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

WV_API int nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_TELEMETRY, &call);
    if (code)
        return code;
    if (!utilization)
        return NVML_ERROR_INVALID_ARGUMENT;
    /* As on the hardware: the share of time in which some kernel ran, whatever it did. */
    int busy = wv_newest(call.gpu).load_mw > call.gpu->spec.idle_mw;
    utilization->gpu = busy ? 100 : 0;
    utilization->memory = busy ? 50 : 0;
    return NVML_SUCCESS;
}

static void put_memory(wv_gpu *gpu, int mig, unsigned long long *total, unsigned long long *used)
{
    *total = mig < 0 ? gpu->spec.memory_bytes : gpu->migs[mig].memory_bytes;
    *used = 0;
    for (uint32_t i = 0; i < gpu->process_count && i < WV_PROCESSES; i++)
        if (mig < 0 || gpu->processes[i].gpu_instance == gpu->migs[mig].gpu_instance)
            *used += gpu->processes[i].memory_bytes;
    if (*used > *total)
        *used = *total;
}

WV_API int nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
    wv_call call;
    int code = wv_begin(device, WV_TELEMETRY, &call);
    if (code)
        return code;
    if (!memory)
        return NVML_ERROR_INVALID_ARGUMENT;
    put_memory(call.gpu, call.mig, &memory->total, &memory->used);
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
    wv_call call;
    int code = wv_begin(device, WV_TELEMETRY, &call);
    if (code)
        return code;
    if (!memory)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (memory->version != NVML_VERSION(nvmlMemory_v2_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    put_memory(call.gpu, call.mig, &memory->total, &memory->used);
    memory->reserved = 0;
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

/* Degrees Celsius: 30 at rest and 45 more at the largest limit, an assumption for display only. */
static int temperature(wv_call *call)
{
    wv_view view;
    wv_look(call->gpu, call->now_ns, &view);
    return 30 + (int)(45.0 * view.average_mw / call->gpu->spec.max_mw);
}

WV_API int nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned int sensor, unsigned int *degrees)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_TELEMETRY, &call);
    if (code)
        return code;
    if (!degrees || sensor != 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    *degrees = (unsigned int)temperature(&call);
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *degrees)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_TELEMETRY, &call);
    if (code)
        return code;
    if (!degrees)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (degrees->version != NVML_VERSION(nvmlTemperature_v1_t, 1))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (degrees->sensorType != 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    degrees->temperature = temperature(&call);
    return NVML_SUCCESS;
}

/* The buffer of samples is not modelled; callers fall back to field values. */
WV_API int nvmlDeviceGetSamples(nvmlDevice_t device, unsigned int type, unsigned long long since,
                                unsigned int *value_type, unsigned int *count,
                                nvmlSample_t *samples)
{
    (void)type;
    (void)since;
    (void)value_type;
    (void)count;
    (void)samples;
    wv_call call;
    int code = wv_begin_whole(device, WV_TELEMETRY, &call);
    return code ? code : NVML_ERROR_NOT_SUPPORTED;
}

#define XID_EVENT 0x8ull

/* A set remembers which GPUs it watches and how many of their Xids it has told of. */
typedef struct {
    uint32_t watched[WV_GPUS];
    uint32_t told[WV_GPUS];
} event_set;

WV_API int nvmlEventSetCreate(nvmlEventSet_t *set)
{
    wv_map *map;
    int code = wv_session(WV_EVENTS, &map);
    if (code)
        return code;
    if (!set)
        return NVML_ERROR_INVALID_ARGUMENT;
    *set = calloc(1, sizeof(event_set));
    return *set ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_RESOURCES;
}

WV_API int nvmlEventSetFree(nvmlEventSet_t set)
{
    if (!set)
        return NVML_ERROR_INVALID_ARGUMENT;
    free(set);
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetSupportedEventTypes(nvmlDevice_t device, unsigned long long *types)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_EVENTS, &call);
    if (code)
        return code;
    if (!types)
        return NVML_ERROR_INVALID_ARGUMENT;
    *types = XID_EVENT;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types,
                                    nvmlEventSet_t set)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_EVENTS, &call);
    if (code)
        return code;
    if (!set)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (types & ~XID_EVENT)
        return NVML_ERROR_NOT_SUPPORTED;
    event_set *events = set;
    events->watched[call.slot] = types != 0;
    events->told[call.slot] = atomic_load(&call.gpu->xid_count);
    return NVML_SUCCESS;
}

WV_API int nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
    wv_map *map;
    int code = wv_session(WV_EVENTS, &map);
    if (code)
        return code;
    if (!set || !data)
        return NVML_ERROR_INVALID_ARGUMENT;
    event_set *events = set;
    int64_t until = wv_now() + (int64_t)timeout_ms * 1000000;
    for (;;) {
        for (int slot = 0; slot < WV_GPUS; slot++) {
            wv_gpu *gpu = &map->gpus[slot];
            if (!events->watched[slot] || atomic_load(&gpu->xid_count) == events->told[slot])
                continue;
            events->told[slot]++;
            memset(data, 0, sizeof *data);
            data->device = wv_handle(map, slot, -1);
            data->eventType = XID_EVENT;
            data->eventData = atomic_load(&gpu->lost);
            data->gpuInstanceId = data->computeInstanceId = 0xffffffffu;
            return NVML_SUCCESS;
        }
        if (wv_now() >= until)
            return NVML_ERROR_TIMEOUT;
        struct timespec pause = {0, 5000000};
        nanosleep(&pause, NULL);
    }
}
