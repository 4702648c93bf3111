/* What every function for a GPU shares. Needs the driver, which is looked for when a function is first called. */
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct kernel {
    const char *symbol;
    unsigned threads, shared;
    uint64_t workspace; /* a block */
    int64_t chunk;      /* tokens a block; 0: a block for each head of each sequence */
    uint64_t parts;     /* blocks for each head of each sequence, along x; 0: as `chunk` says */
};

struct temporary {
    int role; /* 0 token, 1 head, 2 sequence, 3 chunk */
    int64_t chunk, inner, bytes;
};

/* What a tensor's address and used strides are multiples of, in bytes, and the bytes of an element. */
struct operand {
    int role; /* as above */
    int64_t alignment, bytes;
};

struct image {
    int major, minor, only_there;
    const char *ptx;
    const unsigned char *cubin; /* NULL where there is none */
    const struct kernel *kernels;
    int n_kernels;
    const struct temporary *temporaries;
    int n_temporaries;
};

#define MAX_KERNELS 16

struct loaded {
    void *context;
    const struct image *image;
    void *functions[MAX_KERNELS];
    struct loaded *next;
};

struct module {
    const struct image *images; /* the best first */
    int n_images, n_tensors;
    const struct operand *operands;
    struct loaded *loaded;
};

static struct {
    int (*current)(void **);
    int (*device)(int *);
    int (*attribute)(int *, int, int);
    int (*load)(void **, const void *);
    int (*function)(void **, void *, const char *);
    int (*set)(void *, int, int);
    int (*launch)(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **,
                  void **);
    int (*text)(int, const char **);
    int found;
} driver;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void look(void) {
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (!library) return;
    *(void **)&driver.current = dlsym(library, "cuCtxGetCurrent");
    *(void **)&driver.device = dlsym(library, "cuCtxGetDevice");
    *(void **)&driver.attribute = dlsym(library, "cuDeviceGetAttribute");
    *(void **)&driver.load = dlsym(library, "cuModuleLoadData");
    *(void **)&driver.function = dlsym(library, "cuModuleGetFunction");
    *(void **)&driver.set = dlsym(library, "cuFuncSetAttribute");
    *(void **)&driver.launch = dlsym(library, "cuLaunchKernel");
    *(void **)&driver.text = dlsym(library, "cuGetErrorString");
    driver.found = driver.current && driver.device && driver.attribute && driver.load && driver.function &&
                   driver.set && driver.launch && driver.text;
}

const char *cw_gpu_error(int code) {
    const char *text = NULL;
    switch (code) {
    case 0: return "no error";
    case CW_GPU_NO_DRIVER: return "there is no NVIDIA driver";
    case CW_GPU_NO_CONTEXT: return "no CUDA context is current in this thread";
    case CW_GPU_UNSUITABLE: return "this library has no code for this GPU";
    case CW_GPU_WORKSPACE: return "the workspace is too small or not aligned to 256 bytes";
    case CW_GPU_TOO_LARGE: return "there are too many sequences, heads or tokens for one launch";
    case CW_GPU_NO_MEMORY: return "there is no memory in this machine";
    case CW_GPU_MISALIGNED: return "a tensor begins at an address or has strides that are no multiples of 16 bytes, or of its rows";
    }
    pthread_once(&once, look);
    if (driver.found && driver.text(code, &text) == 0 && text) return text;
    return "an error of the driver";
}

static int choose(const struct module *module, const struct image **image) {
    int device, major, minor, error;
    if ((error = driver.device(&device)) || (error = driver.attribute(&major, 75, device)) ||
        (error = driver.attribute(&minor, 76, device)))
        return error;
    for (int i = 0; i < module->n_images; i++) {
        const struct image *it = &module->images[i];
        int same = it->major == major && it->minor == minor;
        if (it->only_there ? same : major > it->major || (major == it->major && minor >= it->minor)) {
            *image = it;
            return 0;
        }
    }
    return CW_GPU_UNSUITABLE;
}

static int load(const struct module *module, void *context, struct loaded **made) {
    const struct image *image;
    void *handle;
    int device, major, error = choose(module, &image);
    if (error || (error = driver.device(&device)) || (error = driver.attribute(&major, 75, device))) return error;
    /* Machine code runs on its own generation only; elsewhere the driver makes it from the PTX. */
    int own = image->cubin && major == image->major;
    if ((error = driver.load(&handle, own ? (const void *)image->cubin : image->ptx))) return error;
    struct loaded *it = calloc(1, sizeof *it);
    if (!it) return CW_GPU_NO_MEMORY;
    it->context = context;
    it->image = image;
    for (int i = 0; i < image->n_kernels && !error; i++) {
        error = driver.function(&it->functions[i], handle, image->kernels[i].symbol);
        if (!error && image->kernels[i].shared)
            error = driver.set(it->functions[i], 8, (int)image->kernels[i].shared);
    }
    if (error) {
        free(it);
        return error;
    }
    *made = it;
    return 0;
}

static int find(struct module *module, const struct loaded **found) {
    void *context = NULL;
    int error;
    pthread_once(&once, look);
    if (!driver.found) return CW_GPU_NO_DRIVER;
    if ((error = driver.current(&context))) return error;
    if (!context) return CW_GPU_NO_CONTEXT;
    pthread_mutex_lock(&lock);
    struct loaded *it = module->loaded;
    while (it && it->context != context) it = it->next;
    if (!it && !(error = load(module, context, &it))) {
        it->next = module->loaded;
        module->loaded = it;
    }
    pthread_mutex_unlock(&lock);
    *found = it;
    return error;
}

static int64_t total(const cw_gpu_call *call) {
    return call->offsets ? call->total : call->sequences * call->length;
}

static uint64_t round_up(uint64_t bytes) { return (bytes + 255) / 256 * 256; }

static uint64_t temporary_bytes(const struct temporary *it, const cw_gpu_call *call) {
    int64_t rows = it->role == 0   ? total(call)
                   : it->role == 1 ? 1
                   : it->role == 2 ? call->sequences
                                   : total(call) / it->chunk + call->sequences;
    return round_up((uint64_t)(rows * call->heads * it->inner * it->bytes));
}

static uint64_t temporaries_bytes(const struct image *image, const cw_gpu_call *call) {
    uint64_t bytes = 0;
    for (int i = 0; i < image->n_temporaries; i++) bytes += temporary_bytes(&image->temporaries[i], call);
    return bytes;
}

static uint64_t blocks(const struct kernel *kernel, const cw_gpu_call *call, uint64_t grid[3]) {
    grid[0] = (uint64_t)(call->sequences * call->heads);
    grid[1] = grid[2] = 1;
    if (kernel->chunk) {
        grid[0] = (uint64_t)((call->length + kernel->chunk - 1) / kernel->chunk);
        if (kernel->parts) grid[0] *= kernel->parts;
        grid[1] = (uint64_t)call->heads;
        grid[2] = (uint64_t)call->sequences;
    } else if (kernel->parts) {
        grid[0] = kernel->parts;
        grid[1] = (uint64_t)call->heads;
        grid[2] = (uint64_t)call->sequences;
    }
    return grid[0] * grid[1] * grid[2];
}

static uint64_t workspace_of(const struct image *image, const cw_gpu_call *call) {
    uint64_t most = 0, grid[3];
    for (int i = 0; i < image->n_kernels; i++) {
        uint64_t bytes = blocks(&image->kernels[i], call, grid) * image->kernels[i].workspace;
        if (bytes > most) most = bytes;
    }
    return temporaries_bytes(image, call) + most;
}

static size_t workspace_size(const struct module *module, const cw_gpu_call *call) {
    uint64_t most = 0;
    for (int i = 0; i < module->n_images; i++) {
        uint64_t bytes = workspace_of(&module->images[i], call);
        if (bytes > most) most = bytes;
    }
    return (size_t)most;
}

static int misaligned(const struct operand *it, const cw_tensor *tensor, const cw_gpu_call *call) {
    int sequences = it->role == 2 || (it->role == 0 && !call->offsets);
    int time = (it->role == 0 && call->length > 1) || it->role == 3;
    return (int64_t)((uintptr_t)tensor->data % (uintptr_t)it->alignment) ||
           (sequences && call->sequences > 1 && tensor->stride_sequence * it->bytes % it->alignment) ||
           (time && tensor->stride_time * it->bytes % it->alignment) ||
           (tensor->heads > 1 && tensor->stride_head * it->bytes % it->alignment);
}

static int launch(struct module *module, const cw_gpu_call *call, void *stream, void *workspace, size_t size) {
    const struct loaded *loaded;
    struct {
        int32_t sequences, heads;
        int64_t length;
        uint64_t workspace, offsets;
        cw_tensor tensors[100];
    } parameter;
    int error = find(module, &loaded);
    if (error) return error;
    const struct image *image = loaded->image;
    if (call->sequences < 0 || call->heads < 0 || call->sequences > INT32_MAX || call->heads > INT32_MAX)
        return CW_GPU_TOO_LARGE;
    for (int i = 0; i < module->n_tensors; i++)
        if (misaligned(&module->operands[i], &call->tensors[i], call)) return CW_GPU_MISALIGNED;
    uint64_t address = (uint64_t)(uintptr_t)workspace;
    if (workspace_of(image, call) > size || address % 256) return CW_GPU_WORKSPACE;
    memset(&parameter, 0, sizeof parameter);
    parameter.sequences = (int32_t)call->sequences;
    parameter.heads = (int32_t)call->heads;
    parameter.length = call->length;
    parameter.offsets = (uint64_t)(uintptr_t)call->offsets;
    memcpy(parameter.tensors, call->tensors, sizeof(cw_tensor) * (size_t)module->n_tensors);
    for (int i = 0; i < image->n_temporaries; i++) {
        const struct temporary *it = &image->temporaries[i];
        int64_t row = call->heads * it->inner;
        cw_tensor *tensor = &parameter.tensors[module->n_tensors + i];
        tensor->data = (void *)(uintptr_t)address;
        tensor->stride_sequence = it->role == 0 ? call->length * row : it->role == 2 ? row : 0;
        tensor->stride_time = it->role == 0 || it->role == 3 ? row : 0;
        tensor->stride_head = it->inner;
        tensor->heads = call->heads;
        address += temporary_bytes(it, call);
    }
    for (int i = 0; i < image->n_kernels; i++) {
        const struct kernel *kernel = &image->kernels[i];
        uint64_t grid[3];
        void *parameters[] = {&parameter};
        if (!blocks(kernel, call, grid)) continue;
        if (grid[0] > INT32_MAX || grid[1] > 65535 || grid[2] > 65535) return CW_GPU_TOO_LARGE;
        parameter.workspace = kernel->workspace ? address : 0;
        error = driver.launch(loaded->functions[i], (unsigned)grid[0], (unsigned)grid[1], (unsigned)grid[2],
                              kernel->threads, 1, 1, kernel->shared, stream, parameters, NULL);
        if (error) return error;
    }
    return 0;
}
