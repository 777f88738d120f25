/* Tells the VMM where the kernel's crash note is, as the kernel's driver qemu_fw_cfg does: one DMA write of 16 bytes to
 * the fw_cfg file etc/vmcoreinfo. Debian's driver finds fw_cfg by ACPI only (CONFIG_FW_CFG_SYSFS_CMDLINE is off), so in a
 * guest without ACPI this does it from user space: the note's place is in /sys/kernel/vmcoreinfo, the DMA request lies in
 * a locked page whose physical address /proc/self/pagemap tells. Needs root. */
#include <endian.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/io.h>
#include <sys/mman.h>
#include <unistd.h>

static int fail(const char *what) { fprintf(stderr, "publish: %s\n", what); return 1; }

static uint32_t read_be(int bytes) {
    uint32_t value = 0;
    while (bytes--) value = value << 8 | inb(0x511);
    return value;
}

int main(void) {
    unsigned long long note, size;
    FILE *f = fopen("/sys/kernel/vmcoreinfo", "r");
    if (!f || fscanf(f, "%llx %llx", &note, &size) != 2) return fail("no /sys/kernel/vmcoreinfo");
    if (iopl(3)) return fail("no access to ports");

    unsigned char *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
    if (page == MAP_FAILED) return fail("no locked page");
    memset(page, 1, 4096);
    uint64_t entry;
    int map = open("/proc/self/pagemap", O_RDONLY);
    if (pread(map, &entry, 8, (uintptr_t)page / 4096 * 8) != 8 || !(entry << 9)) return fail("no physical address");
    uint64_t physical = (entry & ((1ull << 55) - 1)) * 4096;

    outw(0x19, 0x510);
    uint32_t key = 0;
    for (uint32_t files = read_be(4); files; files--) {
        char name[57] = {0};
        read_be(4);
        uint32_t this = read_be(2);
        read_be(2);
        for (int i = 0; i < 56; i++) name[i] = inb(0x511);
        if (!strcmp(name, "etc/vmcoreinfo")) key = this;
    }
    if (!key) return fail("no etc/vmcoreinfo; is -device vmcoreinfo missing?");

    volatile struct { uint32_t control, length; uint64_t address; } *request = (void *)page;
    struct { uint16_t host, guest; uint32_t size; uint64_t address; } *info = (void *)(page + 64);
    info->host = htole16(1), info->guest = htole16(1), info->size = htole32(size), info->address = htole64(note);
    request->length = htobe32(16), request->address = htobe64(physical + 64);
    request->control = htobe32(key << 16 | 0x18); /* select, write */
    __sync_synchronize();
    outl(htobe32(physical >> 32), 0x514);
    outl(htobe32((uint32_t)physical), 0x518);
    if (request->control) return fail("the write was refused");
    printf("PUBLISHED note at %llx, %llu bytes\n", note, size);
    return 0;
}
