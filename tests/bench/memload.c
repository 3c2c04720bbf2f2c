/* What works in the guests of the memory bench. It fills parts of the guest's memory, then touches the hot part at a
 * fixed rate, and says each second on the second serial port how that goes. Its parameters are on the kernel's command
 * line, sizes in MiB:
 *   mem.zero= mem.same= mem.cold=   written once: with zeroes; the same in every guest; different in each
 *   mem.cache=   read once from the disk, which leaves it in the page cache
 *   mem.hot=     touched at random, again and again, with mem.rate= touches a second
 *   mem.seed=    what the unequal parts are made from
 *   mem.phases=SECONDS:MiB,…   the size of the hot part from so many seconds of work on; a number in /run/hot, too
 * Half of each page is random, the other half one word again and again: it compresses to about a half.
 * A touch that is due is made up for within BACKLOG seconds, and lost afterwards: short waits for a CPU cost nothing.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MIB (1 << 20)
#define PAGE 4096
#define WORDS (PAGE / 8)
#define TICK 0.02
#define BACKLOG 0.1
#define MOST (512L * MIB)

static char line[4096];

static long parameter(const char *name, long otherwise)
{
    char *found = strstr(line, name);
    return found ? atol(found + strlen(name)) : otherwise;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void until(double when)
{
    struct timespec t = {(time_t)when, (long)((when - (time_t)when) * 1e9)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static uint64_t next(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

static void fill(uint8_t *part, long first, long last, uint64_t seed)
{
    for (long number = first; number < last; number++) {
        uint64_t *page = (uint64_t *)(part + number * PAGE);
        uint64_t state = (seed + 1) * 0x9e3779b97f4a7c15u ^ (uint64_t)(number + 1) * 0xbf58476d1ce4e5b9u;
        for (int i = 0; i < WORDS / 2; i++)
            page[i] = next(&state);
        for (int i = WORDS / 2; i < WORDS; i++)
            page[i] = seed;
    }
}

static uint8_t *part(long size)
{
    uint8_t *found = mmap(NULL, size ? size : PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED)
        exit(1);
    return found;
}

static void wait_for(const char *path)
{
    while (access(path, F_OK))
        usleep(50000);
}

/* The disk stays open: its last close would empty the page cache of it. */
static void read_disk(long size)
{
    static char buffer[MIB];
    int disk = open("/dev/vda", O_RDONLY);
    for (long done = 0; done < size; done += MIB)
        if (pread(disk, buffer, MIB, done) <= 0)
            break;
}

/* The size that the hot part should have after so many seconds of work, in pages. */
static long wanted(double worked, long hot)
{
    char *phase = strstr(line, "mem.phases=");
    int control = open("/run/hot", O_RDONLY);
    if (control >= 0) {
        char text[32] = "";
        if (read(control, text, sizeof text - 1) > 0)
            hot = atol(text) * (MIB / PAGE);
        close(control);
        return hot;
    }
    for (phase = phase ? phase + strlen("mem.phases=") : NULL; phase;) {
        long seconds = strtol(phase, &phase, 10), size = *phase == ':' ? strtol(phase + 1, &phase, 10) : 0;
        if (worked >= seconds && size > 0)
            hot = size * (MIB / PAGE);
        phase = *phase == ',' ? phase + 1 : NULL;
    }
    return hot;
}

int main(void)
{
    wait_for("/proc/cmdline");
    int file = open("/proc/cmdline", O_RDONLY);
    if (read(file, line, sizeof line - 1) < 0)
        return 1;
    wait_for("/dev/ttyS1");
    /* The balloon's driver is loaded before the disk's. */
    wait_for("/dev/vda");
    FILE *port = fopen("/dev/ttyS1", "w");
    if (!port)
        return 1;
    setvbuf(port, NULL, _IOLBF, 0);
    fprintf(port, "mem t=%.3f ops=0 worst=0 hot=0 ready=0\n", now());

    long seed = parameter("mem.seed=", 1) + 1000, zero = parameter("mem.zero=", 0) * MIB;
    long same = parameter("mem.same=", 0) * MIB, cold = parameter("mem.cold=", 0) * MIB;
    long first = parameter("mem.hot=", 96) * (MIB / PAGE), hot = first, per_tick = parameter("mem.rate=", 5000) * TICK;
    memset(part(zero), 0, zero);
    fill(part(same), 0, same / PAGE, 7);
    fill(part(cold), 0, cold / PAGE, seed);
    read_disk(parameter("mem.cache=", 0) * MIB);
    uint8_t *memory = part(MOST);
    fill(memory, 0, hot, seed + 1000000);

    uint64_t random = seed * 0x9e3779b97f4a7c15u, operations = 0;
    double begun = now(), due = begun, told = begun, worst = 0;
    for (;;) {
        for (long i = 0; i < per_tick; i++)
            ++*(uint64_t *)(memory + (next(&random) >> 16) % hot * PAGE + 64);
        operations += per_tick;
        double done = now();
        if (done - due > worst)
            worst = done - due;
        due += TICK;
        if (due < done - BACKLOG)
            due = done - BACKLOG;
        if (done - told >= 1) {
            fprintf(port, "mem t=%.3f ops=%llu worst=%.1f hot=%ld ready=1\n", done, (unsigned long long)operations,
                    worst * 1e3, hot / (MIB / PAGE));
            told = done, worst = 0;
            long size = wanted(done - begun, first);
            if (size > MOST / PAGE)
                size = MOST / PAGE;
            if (size > hot)
                fill(memory, hot, size, seed + 1000000);
            else if (size > 0 && size < hot)
                madvise(memory + size * PAGE, (hot - size) * PAGE, MADV_DONTNEED);
            if (size > 0)
                hot = size;
        }
        if (due > done)
            until(due);
    }
}
