/* Calls of NVML on power limits, power, energy and field values. */
#include "session.h"

#include <stdlib.h>
#include <unistd.h>

enum entry_field { REQUESTED, ENFORCED };

static int put_limit(nvmlDevice_t device, enum entry_field field, unsigned int *limit)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_LIMIT_READ, &call);
    if (code)
        return code;
    if (!limit)
        return NVML_ERROR_INVALID_ARGUMENT;
    wv_entry entry = wv_newest(call.gpu);
    *limit = field == REQUESTED ? entry.requested_mw : entry.enforced_mw;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetPowerManagementLimit(nvmlDevice_t device, unsigned int *limit)
{
    return put_limit(device, REQUESTED, limit);
}

WV_API int nvmlDeviceGetEnforcedPowerLimit(nvmlDevice_t device, unsigned int *limit)
{
    return put_limit(device, ENFORCED, limit);
}

WV_API int nvmlDeviceGetPowerManagementDefaultLimit(nvmlDevice_t device, unsigned int *limit)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_LIMIT_READ, &call);
    if (code)
        return code;
    if (!limit)
        return NVML_ERROR_INVALID_ARGUMENT;
    *limit = call.gpu->spec.default_mw;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *least,
                                                        unsigned int *most)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_LIMIT_READ, &call);
    if (code)
        return code;
    if (!least || !most)
        return NVML_ERROR_INVALID_ARGUMENT;
    *least = call.gpu->spec.min_mw;
    *most = call.gpu->spec.max_mw;
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetPowerManagementMode(nvmlDevice_t device, unsigned int *mode)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_LIMIT_READ, &call);
    if (code)
        return code;
    if (!mode)
        return NVML_ERROR_INVALID_ARGUMENT;
    *mode = 1;
    return NVML_SUCCESS;
}

static int set_limit(wv_call *call, unsigned int limit)
{
    const wv_spec *spec = &call->gpu->spec;
    if (limit < spec->min_mw || limit > spec->max_mw)
        return NVML_ERROR_INVALID_ARGUMENT;
    int code = wv_lock_code(call->map);
    if (code)
        return code;
    wv_entry last = wv_newest(call->gpu);
    wv_entry entry = wv_advance(call->gpu, &last, wv_now());
    wv_set_requested(spec, &entry, limit);
    wv_publish(call->gpu, &entry, WV_NVML, (uint32_t)getpid());
    wv_unlock(call->map);
    return call->late;
}

WV_API int nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned int limit)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_LIMIT_WRITE, &call);
    return code ? code : set_limit(&call, limit);
}

WV_API int nvmlDeviceSetPowerManagementLimit_v2(nvmlDevice_t device, nvmlPowerValue_v2_t *value)
{
    wv_call call;
    int code = wv_begin_whole(device, WV_LIMIT_WRITE, &call);
    if (code)
        return code;
    if (!value)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (value->version != NVML_VERSION(nvmlPowerValue_v2_t, 2))
        return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (value->powerScope >= NVML_SCOPE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (value->powerScope != NVML_SCOPE_GPU)
        return NVML_ERROR_NOT_SUPPORTED;
    return set_limit(&call, value->powerValueMw);
}

WV_API int nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *power)
{
    wv_call call;
    wv_view view;
    int code = wv_begin_whole(device, WV_POWER, &call);
    if (code)
        return code;
    if (!power)
        return NVML_ERROR_INVALID_ARGUMENT;
    wv_look(call.gpu, call.now_ns, &view);
    *power = (unsigned int)(view.average_mw + 0.5);
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *energy)
{
    wv_call call;
    wv_view view;
    int code = wv_begin_whole(device, WV_ENERGY, &call);
    if (code)
        return code;
    if (!energy)
        return NVML_ERROR_INVALID_ARGUMENT;
    wv_look(call.gpu, call.now_ns, &view);
    *energy = (unsigned long long)view.energy_mj;
    return NVML_SUCCESS;
}

/* Field ids: 74 time held back by the power cap, 83 and 191 energy, 185 and 186 mean and
 * instantaneous power, 187 to 190 limits, 192 requested limit, 269 to 271 other throttling. */
static int field_group(unsigned int id)
{
    switch (id) {
    case 83: case 191:
        return WV_ENERGY;
    case 185: case 186:
        return WV_POWER;
    case 187: case 188: case 189: case 190: case 192:
        return WV_LIMIT_READ;
    case 74: case 269: case 270: case 271:
        return WV_REASONS;
    default:
        return -1;
    }
}

static int hidden(wv_gpu *gpu, unsigned int id)
{
    for (int i = 0; i < WV_HIDDEN_FIELDS; i++)
        if (atomic_load(&gpu->hidden_fields[i]) == id)
            return 1;
    return 0;
}

static int put_field(wv_call *call, const wv_view *view, nvmlFieldValue_t *field)
{
    const wv_spec *spec = &call->gpu->spec;
    int group = field_group(field->fieldId);
    if (group < 0 || hidden(call->gpu, field->fieldId))
        return NVML_ERROR_NOT_SUPPORTED;
    int code = wv_take_fault(call->map, call->slot, group);
    if (code)
        return abs(code);
    int scoped = field->fieldId >= 185 && field->fieldId <= 192;
    if (scoped && field->scopeId >= NVML_SCOPE_COUNT)
        return NVML_ERROR_INVALID_ARGUMENT;
    if (scoped && field->scopeId != NVML_SCOPE_GPU)
        return NVML_ERROR_NOT_SUPPORTED;
    unsigned long long value = 0;
    field->valueType = NVML_VALUE_UNSIGNED_INT;
    switch (field->fieldId) {
    case 74:
        value = (unsigned long long)view->capped_ns;
        break;
    case 83: case 191:
        value = (unsigned long long)view->energy_mj;
        break;
    case 185:
        value = (unsigned long long)(view->average_mw + 0.5);
        break;
    case 186:
        value = (unsigned long long)(view->instant_mw + 0.5);
        break;
    case 187:
        value = spec->min_mw;
        break;
    case 188:
        value = spec->max_mw;
        break;
    case 189:
        value = spec->default_mw;
        break;
    case 190:
        value = view->entry.enforced_mw;
        break;
    case 192:
        value = view->entry.requested_mw;
        break;
    default: /* 269 to 271: heat and the external power brake are not modelled, so never held back */
        break;
    }
    if (group == WV_ENERGY || group == WV_REASONS) {
        field->valueType = NVML_VALUE_UNSIGNED_LONG_LONG;
        field->value.ullVal = value;
    } else {
        field->value.ullVal = 0;
        field->value.uiVal = (unsigned int)value;
    }
    return NVML_SUCCESS;
}

WV_API int nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *values)
{
    wv_call call;
    wv_view view;
    int code = wv_begin_whole(device, WV_FIELDS, &call);
    if (code)
        return code;
    if (!values || count < 1)
        return NVML_ERROR_INVALID_ARGUMENT;
    wv_look(call.gpu, call.now_ns, &view);
    for (int i = 0; i < count; i++) {
        values[i].timestamp = call.now_ns / 1000;
        values[i].latencyUsec = 0;
        values[i].nvmlReturn = put_field(&call, &view, &values[i]);
    }
    return NVML_SUCCESS;
}
