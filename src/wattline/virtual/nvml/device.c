/* Calls of NVML on identity, clocks, persistence mode, processes, MIG and telemetry. */
#include "session.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

WV_API int nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
    wv_call call;
    int code = wv_begin(device, WV_IDENTITY, &call);
    return code ? code : wv_put_text(call.gpu->spec.name, name, length);
}

WV_API int nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
    wv_call call;
    int code = wv_begin(device, WV_IDENTITY, &call);
    if (code)
        return code;
    const char *own = call.mig < 0 ? call.gpu->spec.uuid : call.gpu->migs[call.mig].uuid;
    return wv_put_text(own, uuid, length);
}

WV_API int nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_IDENTITY, &call);
    return code ? code : wv_put_text(call.gpu->spec.serial, serial, length);
}

WV_API int nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
    wv_call call;
    int code = wv_begin(device, WV_IDENTITY, &call);
    if (code)
        return code;
    if (!index)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (call.mig >= 0) {
        *index = (unsigned int)call.mig;
        return NVML_SUCCESS;
    }
    for (unsigned int i = 0; i < call.map->count; i++) {
        if ((int)call.map->order[i] == call.slot) {
            *index = i;
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_GPU_IS_LOST;
}

WV_API int nvmlDeviceGetMinorNumber(nvmlDevice_t device, unsigned int *minor)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_IDENTITY, &call);
    if (code)
        return code;
    if (!minor)
        return NVML_ERROR_INVALID_ARGUMENT;
    *minor = call.gpu->spec.minor;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetArchitecture(nvmlDevice_t device, unsigned int *architecture)
{
    wv_call call;
    int code = wv_begin(device, WV_IDENTITY, &call);
    if (code)
        return code;
    if (!architecture)
        return NVML_ERROR_INVALID_ARGUMENT;
    *architecture = call.gpu->spec.architecture;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
    wv_call call;
    int code = wv_begin(device, WV_IDENTITY, &call);
    if (code)
        return code;
    if (!pci)
        return NVML_ERROR_INVALID_ARGUMENT;
    memset(pci, 0, sizeof *pci);
    pci->bus = call.gpu->spec.pci_bus;
    pci->pciDeviceId = call.gpu->spec.pci_device_id;
    snprintf(pci->busId, sizeof pci->busId, "%s", call.gpu->spec.bus_id);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus & 0xffu);
    return NVML_SUCCESS;
}

enum { CLOCK_GRAPHICS, CLOCK_SM, CLOCK_MEMORY, CLOCK_VIDEO };

static int put_clock(nvmlDevice_t device, unsigned int type, int most, unsigned int *clock)
{
    wv_call call;
    wv_view view;
    int code = wv_begin_whole(device, WV_CLOCK_READ, &call);
    if (code)
        return code;
    if (!clock || type > CLOCK_VIDEO)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (type == CLOCK_MEMORY)
        *clock = call.gpu->spec.memory_mhz;
    else if (most)
        *clock = call.gpu->spec.max_mhz;
    else {
        wv_look(call.gpu, call.now_ns, &view);
        *clock = view.clock_mhz;
    }
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *clock)
{
    return put_clock(device, type, 0, clock);
}

WV_API int nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *clock)
{
    return put_clock(device, type, 1, clock);
}

/* Publishes new locks on the clocks, or a new persistence mode where that is not negative. */
static int change_entry(wv_call *call, uint32_t least_mhz, uint32_t most_mhz, int persistence)
{
    int code = wv_lock_code(call->map);
    if (code)
        return code;
    wv_entry last = wv_newest(call->gpu);
    wv_entry entry = wv_advance(call->gpu, &last, wv_now());
    if (persistence >= 0) {
        entry.persistence = (uint32_t)persistence;
    } else {
        entry.clock_min_mhz = least_mhz;
        entry.clock_max_mhz = most_mhz;
    }
    wv_publish(call->gpu, &entry, WV_NVML, (uint32_t)getpid());
    wv_unlock(call->map);
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned int least, unsigned int most)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_CLOCK_WRITE, &call);
    if (code)
        return code;
    if (least > most || most == 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    const wv_spec *spec = &call.gpu->spec;
    if (most < spec->min_mhz) /* the driver rounds to a clock that it has */
        most = spec->min_mhz;
    if (most > spec->max_mhz)
        most = spec->max_mhz;
    return change_entry(&call, least < most ? least : most, most, -1);
}

WV_API int nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_CLOCK_WRITE, &call);
    return code ? code : change_entry(&call, 0, 0, -1);
}

WV_API int nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *reasons)
{
    wv_call call;
    wv_view view;
    int code = wv_begin_whole(device, WV_REASONS, &call);
    if (code)
        return code;
    if (!reasons)
        return NVML_ERROR_INVALID_ARGUMENT;
    wv_look(call.gpu, call.now_ns, &view);
    *reasons = 0;
    if (view.entry.load_mw <= call.gpu->spec.idle_mw)
        *reasons |= NVML_REASON_GPU_IDLE;
    if (view.entry.clock_max_mhz)
        *reasons |= NVML_REASON_CLOCK_SETTING;
    if (view.capped)
        *reasons |= NVML_REASON_SW_POWER_CAP;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetCurrentClocksThrottleReasons(nvmlDevice_t device,
                                                     unsigned long long *reasons)
{
    return nvmlDeviceGetCurrentClocksEventReasons(device, reasons);
}

WV_API int nvmlDeviceGetSupportedClocksEventReasons(nvmlDevice_t device,
                                                    unsigned long long *reasons)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_REASONS, &call);
    if (code)
        return code;
    if (!reasons)
        return NVML_ERROR_INVALID_ARGUMENT;
    *reasons = NVML_REASONS;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetSupportedClocksThrottleReasons(nvmlDevice_t device,
                                                       unsigned long long *reasons)
{
    return nvmlDeviceGetSupportedClocksEventReasons(device, reasons);
}

WV_API int nvmlDeviceGetPersistenceMode(nvmlDevice_t device, unsigned int *mode)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_PERSISTENCE, &call);
    if (code)
        return code;
    if (!mode)
        return NVML_ERROR_INVALID_ARGUMENT;
    *mode = wv_newest(call.gpu).persistence;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceSetPersistenceMode(nvmlDevice_t device, unsigned int mode)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_PERSISTENCE, &call);
    if (code)
        return code;
    if (mode > 1)
        return NVML_ERROR_INVALID_ARGUMENT;
    return change_entry(&call, 0, 0, (int)mode);
}

/* On the GPU's own handle all processes are listed; on a MIG instance's those of the instance. */
static int put_processes(nvmlDevice_t device, uint32_t graphics, unsigned int *count,
                         nvmlProcessInfo_t *infos)
{
    wv_call call;
    int code = wv_begin(device, WV_PROCESS_LIST, &call);
    if (code)
        return code;
    if (!count || (*count && !infos))
        return NVML_ERROR_INVALID_ARGUMENT;
    code = wv_lock_code(call.map);
    if (code)
        return code;
    wv_gpu *gpu = call.gpu;
    const wv_mig *mig = call.mig < 0 ? NULL : &gpu->migs[call.mig];
    unsigned int found = 0;
    for (uint32_t i = 0; i < gpu->process_count && i < WV_PROCESSES; i++) {
        const wv_process *process = &gpu->processes[i];
        if (process->graphics != graphics || (mig && process->gpu_instance != mig->gpu_instance))
            continue;
        if (found < *count) {
            infos[found].pid = process->pid;
            infos[found].usedGpuMemory = process->memory_bytes;
            infos[found].gpuInstanceId = process->gpu_instance;
            infos[found].computeInstanceId = process->compute_instance;
        }
        found++;
    }
    wv_unlock(call.map);
    code = found > *count ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
    *count = found;
    return code;
}

WV_API int nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                   nvmlProcessInfo_t *infos)
{
    return put_processes(device, 0, count, infos);
}

WV_API int nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                                   nvmlProcessInfo_t *infos)
{
    return put_processes(device, 0, count, infos);
}

WV_API int nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                    nvmlProcessInfo_t *infos)
{
    return put_processes(device, 1, count, infos);
}

WV_API int nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
                                                    nvmlProcessInfo_t *infos)
{
    return put_processes(device, 1, count, infos);
}

WV_API int nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_MIG, &call);
    if (code)
        return code;
    if (!current || !pending)
        return NVML_ERROR_INVALID_ARGUMENT;
    *current = *pending = wv_newest(call.gpu).mig;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetMaxMigDeviceCount(nvmlDevice_t device, unsigned int *count)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_MIG, &call);
    if (code)
        return code;
    if (!count)
        return NVML_ERROR_INVALID_ARGUMENT;
    *count = wv_newest(call.gpu).mig ? 7 : 0; /* Hopper and Blackwell split into seven at most */
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceIsMigDeviceHandle(nvmlDevice_t device, unsigned int *is_mig)
{
    wv_call call;
    int code = wv_begin(device, WV_MIG, &call);
    if (code)
        return code;
    if (!is_mig)
        return NVML_ERROR_INVALID_ARGUMENT;
    *is_mig = call.mig >= 0;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index,
                                               nvmlDevice_t *instance)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_MIG, &call);
    if (code)
        return code;
    if (!instance || index >= WV_MIGS)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (!wv_newest(call.gpu).mig)
        return NVML_ERROR_NOT_SUPPORTED;
    if (index >= call.gpu->mig_count)
        return NVML_ERROR_NOT_FOUND;
    *instance = wv_handle(call.map, call.slot, (int)index);
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t instance, nvmlDevice_t *device)
{
    wv_call call;
    int code = wv_begin(instance, WV_MIG, &call);
    if (code)
        return code;
    if (!device || call.mig < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    *device = wv_handle(call.map, call.slot, -1);
    return NVML_SUCCESS;
}

static int put_mig_id(nvmlDevice_t device, int compute, unsigned int *id)
{
    wv_call call;
    int code = wv_begin(device, WV_MIG, &call);
    if (code)
        return code;
    if (!id || call.mig < 0)
        return NVML_ERROR_INVALID_ARGUMENT;
    const wv_mig *mig = &call.gpu->migs[call.mig];
    *id = compute ? mig->compute_instance : mig->gpu_instance;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetGpuInstanceId(nvmlDevice_t device, unsigned int *id)
{
    return put_mig_id(device, 0, id);
}

WV_API int nvmlDeviceGetComputeInstanceId(nvmlDevice_t device, unsigned int *id)
{
    return put_mig_id(device, 1, id);
}
