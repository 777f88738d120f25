# The built-in guest. What it does, and why so, is told in mod.rs; what is where:
#
#   0x009000  trampoline of the other processors, copied there
#   0x100000  this code, start to end, never written to
#   0x110000  0x800 bytes for each processor: stack below 0x600, constants above
#   0x1a0000  interrupt table, 0x1a1000 what all processors share, 0x1a2000 kvmclock's page, 0x1a3000 the console's lock
#   0x200000  page tables: PML4, PDPT, page directories
#   0x400000  the working set, up to the end of low RAM, then on from 4 GiB
#
# Every address is relative to .Lbase, so that the image is right wherever the linker puts it.
#
# From .Lround on nothing is written but the working set (and, with several processors, the console's lock): no stack, no
# variables. Registers that live through a round:
#   r10 round = version being written   r11 extra work after each page   r12 time of the next page   r14 pages written
#   r15 time of the last line           rsp this processor's constants

  .pushsection .rodata.godwit_guest, "a", @progbits
  .balign 4096
  .globl godwit_guest_start
  .hidden godwit_guest_start
  .globl godwit_guest_end
  .hidden godwit_guest_end

  .set GW_LOAD, 0x100000
  .set GW_TRAMPOLINE, 0x9000
  .set GW_CPUS, 0x110000
  .set GW_CPU_BYTES, 0x800
  .set GW_CONST, 0x600
  .set GW_IDT, 0x1a0000
  .set GW_SHARED, 0x1a1000
  .set GW_CLOCK, 0x1a2000
  .set GW_LOCK, 0x1a3000
  .set GW_TABLES, 0x200000
  .set GW_SET, 0x400000
  .set GW_CPUS_MAX, 254

  # Shared, written once by the first processor.
  .set SH_PAGES, GW_SHARED          # pages of the working set
  .set SH_RATE, GW_SHARED+8
  .set SH_PATTERN, GW_SHARED+16     # 0 seq, 1 random, 2 hot, 3 zipf
  .set SH_BYTES, GW_SHARED+24
  .set SH_FILL, GW_SHARED+32        # 0 zero, 1 text, 2 random
  .set SH_HZ, GW_SHARED+40          # TSC ticks per second
  .set SH_LOW, GW_SHARED+48         # pages of the working set that fit below the hole
  .set SH_HOLE, GW_SHARED+56        # bytes between them and the rest
  .set SH_HIGH, GW_SHARED+64        # pages that fit above the hole
  .set SH_CPUS, GW_SHARED+72        # processors that take part
  .set SH_COUNT, GW_SHARED+80       # processors that came up
  .set SH_GO, GW_SHARED+88

  # Constants of one processor, at rsp.
  .set C_START, 0                   # first page of its part
  .set C_PAGES, 8
  .set C_WORDS, 16                  # 8-byte words written per page, and the bytes from one to the next
  .set C_STRIDE, 24
  .set C_INTERVAL, 32               # ticks per page, 0 is flat out
  .set C_LOW, 40
  .set C_HOLE, 48
  .set C_CLASSES, 56                # end of the table of classes
  .set C_MASK, 64                   # of the smallest power of two that holds all pages
  .set C_SHIFT, 72
  .set C_SCATTER, 80
  .set C_SALT, 88
  .set C_ROUNDS_MASK, 96            # rounds per sweep, a power of two
  .set C_ROUNDS_SHIFT, 104
  .set C_CPU, 112
  .set C_CPUS, 120
  .set C_GAP, 128                   # ticks between lines, at least
  .set C_HZ, 136
  .set C_TABLE, 144                 # classes: first rank, end, period in rounds

  # Low half of a stamp: the page's number plus this, so that no stamp is zero.
  .set GW_MARK, 0x40000000

  .macro GW_PUTC                    # the character in al; uses rdx
  movb %al, %ah
  movw $0x3fd, %dx
881: inb %dx, %al
  testb $0x20, %al
  jz 881b
  movb %ah, %al
  movw $0x3f8, %dx
  outb %al, %dx
  .endm

  .macro GW_NOW                     # the time stamp counter in rax; uses rdx
  rdtsc
  shlq $32, %rdx
  orq %rdx, %rax
  .endm

  .macro GW_SAY text                # uses r13, rsi, rax, rdx
  leaq \text(%rip), %rsi
  leaq 882f(%rip), %r13
  jmp .Lputs
882:
  .endm

  .macro GW_DEC                     # the number in rdi; uses r13, rax, rcx, rdx, rbp, rsi
  leaq 883f(%rip), %r13
  jmp .Lputdec
883:
  .endm

  .macro GW_HEX                     # the number in rdi, 16 digits; uses r13, rax, rcx, rdx
  leaq 884f(%rip), %r13
  jmp .Lputhex
884:
  .endm

# ---------------------------------------------------------------------------------------------------------------------
# Into long mode. PVH starts the first processor here: 32-bit, flat segments, ebx = start_info.
  .code32
godwit_guest_start:
.Lbase:
  cli
  cld
  movl %ebx, %ebp
  movl $GW_TABLES, %edi             # PML4, PDPT and four page directories: 4 GiB one to one in 2 MiB pages
  xorl %eax, %eax
  movl $(6*1024), %ecx
  rep stosl
  movl $(GW_TABLES+0x1003), GW_TABLES
  movl $(GW_TABLES+0x2003), GW_TABLES+0x1000
  movl $(GW_TABLES+0x3003), GW_TABLES+0x1008
  movl $(GW_TABLES+0x4003), GW_TABLES+0x1010
  movl $(GW_TABLES+0x5003), GW_TABLES+0x1018
  movl $(GW_TABLES+0x2000), %edi
  movl $0x83, %eax
  movl $2048, %ecx
1: movl %eax, (%edi)
  addl $0x200000, %eax
  addl $8, %edi
  decl %ecx
  jnz 1b
  movl $GW_SHARED, %edi
  xorl %eax, %eax
  movl $(3*1024), %ecx              # shared page, clock and lock
  rep stosl
  movl $(.Lfirst64 - .Lbase + GW_LOAD), %esi
.Lenter64:                          # to esi, in long mode; ebp is kept
  lgdtl (.Lgdtr - .Lbase + GW_LOAD)
  movl $GW_TABLES, %eax
  movl %eax, %cr3
  movl %cr4, %eax
  orl $0x20, %eax
  movl %eax, %cr4
  movl $0xc0000080, %ecx
  rdmsr
  orl $0x100, %eax
  wrmsr
  movl %cr0, %eax
  orl $0x80000001, %eax
  movl %eax, %cr0
  ljmpl $8, $(.Lboth64 - .Lbase + GW_LOAD)

.Lap32:                             # the other processors, from the trampoline
  movw $16, %ax
  movw %ax, %ds
  movw %ax, %es
  movw %ax, %ss
  movl $(.Lother64 - .Lbase + GW_LOAD), %esi
  jmp .Lenter64

  .balign 8
.Lgdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff, 0x00cf9b000000ffff
.Lgdtr: .word 31
  .long .Lgdt - .Lbase + GW_LOAD

# 16-bit: cli; lgdt; cr0.PE = 1; far jump to .Lap32. By hand, since it runs elsewhere than it stands.
.Ltrampoline:
  .byte 0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16
  .word .Ltrampoline_gdtr - .Ltrampoline
  .byte 0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0x66, 0xea
  .long .Lap32 - .Lbase + GW_LOAD
  .word 0x18
.Ltrampoline_gdtr: .word 31
  .long .Lgdt - .Lbase + GW_LOAD
.Ltrampoline_end:

  .code64
.Lboth64:
  movl $16, %eax
  movl %eax, %ds
  movl %eax, %es
  movl %eax, %ss
  xorl %eax, %eax
  movl %eax, %fs
  movl %eax, %gs
  movl %esi, %esi
  jmpq *%rsi

# ---------------------------------------------------------------------------------------------------------------------
# The first processor: learn, then start the others.
.Lfirst64:
  movl $(GW_CPUS+GW_CONST), %esp
  movl %ebp, %ebx                   # start_info
  call .Lbuild_idt
  lidtq .Lidtr(%rip)
  GW_SAY .Lsay_up
  call .Lmemory
  call .Lparameters
  call .Lfits
  call .Lclock
  call .Lstart_others
  leaq .Lsay_ws(%rip), %rsi
  call .Lputs_called
  movq SH_PAGES, %rdi
  shrq $8, %rdi
  call .Lputdec_called
  leaq .Lsay_cpus(%rip), %rsi
  call .Lputs_called
  movq SH_CPUS, %rdi
  call .Lputdec_called
  leaq .Lsay_end(%rip), %rsi
  call .Lputs_called
  movl $1, SH_GO
  xorl %ebx, %ebx                   # its index
  jmp .Lwork

# The others: take a number, wait for the word.
.Lother64:
  movl $1, %ebx
  lock xaddq %rbx, SH_COUNT
  cmpl $GW_CPUS_MAX, %ebx
  jae .Lpark
  lidtq .Lidtr(%rip)
  imull $GW_CPU_BYTES, %ebx, %eax
  leal GW_CPUS+GW_CONST(%rax), %esp
1: pause
  cmpl $0, SH_GO
  je 1b
  cmpq SH_CPUS, %rbx                # came too late
  jae .Lpark
  jmp .Lwork

.Lpark:
  cli
  hlt
  jmp .Lpark

# Low and high RAM from start_info's memory map; more page directories for what lies above 4 GiB.
.Lmemory:
  movq $-1, SH_LOW                  # without a map everything is believed to fit
  cmpl $1, 4(%rbx)
  jb 9f
  movq 40(%rbx), %rsi
  movl 48(%rbx), %ecx
  testq %rsi, %rsi
  jz 9f
  movq $0, SH_LOW
1: testl %ecx, %ecx
  jz 5f
  decl %ecx
  cmpl $1, 16(%rsi)
  jne 4f
  movq (%rsi), %rax
  movq %rax, %rdx
  addq 8(%rsi), %rdx                # end
  cmpq $GW_SET, %rax
  ja 2f
  cmpq $GW_SET, %rdx
  jbe 4f
  movq %rdx, %r8
  subq $GW_SET, %r8
  shrq $12, %r8
  movq %r8, SH_LOW
  jmp 4f
2: movq $0x100000000, %r9
  cmpq %r9, %rax
  jb 4f
  cmpq $0, SH_HIGH
  jne 4f
  movq %rdx, %r8
  subq %rax, %r8
  shrq $12, %r8
  movq %r8, SH_HIGH
  movq %rax, %r10
  movq %rdx, %r11
4: addq $24, %rsi
  jmp 1b
5: cmpq $0, SH_HIGH
  je 9f
  movq SH_LOW, %rax                 # hole: from the end of the low part to the high base
  shlq $12, %rax
  addq $GW_SET, %rax
  subq %rax, %r10
  movq %r10, SH_HOLE
  movl $(GW_TABLES+0x6000), %edi    # page directories from 4 GiB to r11
  movl $(GW_TABLES+0x1020), %esi
  movq $0x100000083, %rax
6: leaq 3(%rdi), %rdx
  movq %rdx, (%rsi)
  addq $8, %rsi
  movl $512, %ecx
7: movq %rax, (%rdi)
  addq $0x200000, %rax
  addq $8, %rdi
  decl %ecx
  jnz 7b
  cmpl $GW_SET, %edi
  jae 9f
  cmpq %r11, %rax
  jb 6b
9: ret

# The command line: words apart by spaces, each NAME=VALUE; what is not known is skipped.
.Lparameters:
  movq $(16*256), SH_PAGES
  movq $8, SH_BYTES
  movq 24(%rbx), %rsi
  testq %rsi, %rsi
  jz 9f
1: movb (%rsi), %al                 # at the start of a word or before it
  testb %al, %al
  jz 9f
  cmpb $32, %al
  jne 2f
  incq %rsi
  jmp 1b
2: movl (%rsi), %eax
  movl %eax, %edx
3: movb (%rsi), %cl                 # to the value
  testb %cl, %cl
  jz 9f
  cmpb $32, %cl
  je 1b
  incq %rsi
  cmpb $61, %cl
  jne 3b
  andl $0xffffff, %edx
  cmpl $0x3d7377, %edx              # ws=
  je .Lset_ws
  cmpl $0x65746172, %eax            # rate
  je .Lset_rate
  cmpl $0x65747962, %eax            # byte(s)
  je .Lset_bytes
  cmpl $0x74746170, %eax            # patt(ern)
  je .Lset_pattern
  cmpl $0x6c6c6966, %eax            # fill
  je .Lset_fill
4: movb (%rsi), %al                 # to the end of the word
  testb %al, %al
  jz 9f
  cmpb $32, %al
  je 1b
  incq %rsi
  jmp 4b
9: ret
.Lset_ws:
  call .Lnumber
  shlq $8, %rax
  movq %rax, SH_PAGES
  jmp 4b
.Lset_rate:
  call .Lnumber
  movq %rax, SH_RATE
  jmp 4b
.Lset_bytes:
  call .Lnumber
  movq %rax, SH_BYTES
  jmp 4b
.Lset_pattern:
  xorl %edx, %edx
  movb (%rsi), %al
  cmpb $0x72, %al                   # r(andom)
  je 3f
  cmpb $0x68, %al                   # h(ot)
  je 2f
  cmpb $0x7a, %al                   # z(ipf)
  jne 1f
  incl %edx
2: incl %edx
3: incl %edx
1: movq %rdx, SH_PATTERN
  jmp 4b
.Lset_fill:
  xorl %edx, %edx
  movb (%rsi), %al
  cmpb $0x74, %al                   # t(ext)
  je 2f
  cmpb $0x72, %al                   # r(andom)
  jne 1f
  incl %edx
2: incl %edx
1: movq %rdx, SH_FILL
  jmp 4b

.Lnumber:                           # decimal at rsi into rax
  xorl %eax, %eax
1: movzbl (%rsi), %ecx
  subl $48, %ecx
  cmpl $9, %ecx
  ja 2f
  imulq $10, %rax
  addq %rcx, %rax
  incq %rsi
  jmp 1b
2: ret

# A working set that RAM has no room for ends the guest with a message.
.Lfits:
  movq SH_LOW, %rax
  addq SH_HIGH, %rax
  cmpq SH_PAGES, %rax
  jae 1f
  leaq .Lsay_big(%rip), %rsi
  call .Lputs_called
  movq SH_LOW, %rdi
  addq SH_HIGH, %rdi
  shrq $8, %rdi
  call .Lputdec_called
  leaq .Lsay_mib(%rip), %rsi
  call .Lputs_called
  jmp .Lpark
1: ret

# TSC ticks per second, from kvmclock's scale; two thousand million where there is none.
.Lclock:
  movq $2000000000, %rax
  movq %rax, SH_HZ
  movl $0x40000000, %eax
  cpuid
  cmpl $0x4b4d564b, %ebx            # KVMK
  jne 9f
  movl $0x40000001, %eax
  cpuid
  testl $8, %eax
  jz 9f
  movl $0x4b564d01, %ecx            # MSR_KVM_SYSTEM_TIME_NEW
  movl $(GW_CLOCK+1), %eax
  xorl %edx, %edx
  wrmsr
  movl $1000000, %esi
1: movl GW_CLOCK+24, %edi           # scale; zero until KVM has written it
  testl %edi, %edi
  jnz 2f
  pause
  decl %esi
  jnz 1b
  jmp 8f
2: movq $(1000000000 << 32), %rax
  xorl %edx, %edx
  divq %rdi
  movsbl GW_CLOCK+28, %ecx          # shift
  testl %ecx, %ecx
  js 3f
  shrq %cl, %rax
  jmp 4f
3: negl %ecx
  shlq %cl, %rax
4: movq %rax, SH_HZ
8: movl $0x4b564d01, %ecx           # off again: nothing shall write to memory from now on
  xorl %eax, %eax
  xorl %edx, %edx
  wrmsr
9: ret

# How many processors there are is asked of fw_cfg; INIT and SIPI to all others, then wait for them.
.Lstart_others:
  movq $1, SH_COUNT
  movq $1, SH_CPUS
  movw $0x510, %dx
  xorl %eax, %eax
  outw %ax, %dx
  movw $0x511, %dx
  xorl %edi, %edi
  movl $4, %ecx
1: inb %dx, %al
  shll $8, %edi
  movb %al, %dil
  decl %ecx
  jnz 1b
  cmpl $0x51454d55, %edi            # QEMU
  jne 9f
  movw $0x510, %dx
  movl $5, %eax                     # FW_CFG_NB_CPUS
  outw %ax, %dx
  movw $0x511, %dx
  inb %dx, %al
  movzbl %al, %edi
  inb %dx, %al
  movzbl %al, %eax
  shll $8, %eax
  orl %eax, %edi
  cmpl $2, %edi
  jb 9f
  cmpl $GW_CPUS_MAX, %edi
  jbe 2f
  movl $GW_CPUS_MAX, %edi
2: movl %edi, %r9d
  leaq .Ltrampoline(%rip), %rsi
  movl $GW_TRAMPOLINE, %edi
  movl $(.Ltrampoline_end - .Ltrampoline), %ecx
  rep movsb
  movl $0xfee00000, %r8d
  movl $0x1ff, 0xf0(%r8)            # local APIC on
  movl $0xc4500, 0x300(%r8)         # INIT to all but this one
  movq SH_HZ, %rcx
  shrq $7, %rcx
  call .Lwait
  movl $(0xc4600 + (GW_TRAMPOLINE >> 12)), 0x300(%r8)
  movq SH_HZ, %rcx
  shrq $10, %rcx
  call .Lwait
  movl $(0xc4600 + (GW_TRAMPOLINE >> 12)), 0x300(%r8)
  GW_NOW
  movq SH_HZ, %rsi                  # at most 16 seconds
  shlq $4, %rsi
  addq %rax, %rsi
3: cmpq SH_COUNT, %r9
  jbe 4f
  pause
  GW_NOW
  cmpq %rsi, %rax
  jb 3b
4: movq SH_COUNT, %rax
  cmpq %r9, %rax
  jbe 5f
  movq %r9, %rax
5: movq %rax, SH_CPUS
9: ret

.Lwait:                             # rcx ticks
  GW_NOW
  addq %rax, %rcx
1: pause
  GW_NOW
  cmpq %rcx, %rax
  jb 1b
  ret

# ---------------------------------------------------------------------------------------------------------------------
# One processor's part: constants, first contents, then rounds for ever. ebx = its index.
.Lwork:
  movq %rbx, C_CPU(%rsp)
  movq SH_CPUS, %rcx
  movq %rcx, C_CPUS(%rsp)
  movq SH_LOW, %rax
  movq %rax, C_LOW(%rsp)
  movq SH_HOLE, %rax
  movq %rax, C_HOLE(%rsp)
  movq SH_HZ, %rax
  movq %rax, C_HZ(%rsp)
  shrq $6, %rax
  movq %rax, C_GAP(%rsp)
  movq SH_PAGES, %rax               # its share; the last one takes the rest
  xorl %edx, %edx
  divq %rcx
  movq %rax, %r8
  imulq %rbx, %rax
  movq %rax, C_START(%rsp)
  leaq 1(%rbx), %rdx
  cmpq %rcx, %rdx
  jb 1f
  movq SH_PAGES, %r8
  subq %rax, %r8
1: movq %r8, C_PAGES(%rsp)
  movq SH_BYTES, %rcx               # words, at least one, at most 512
  shrq $3, %rcx
  jnz 2f
  incl %ecx
2: cmpl $512, %ecx
  jbe 3f
  movl $512, %ecx
3: movq %rcx, C_WORDS(%rsp)
  movl $512, %eax
  xorl %edx, %edx
  divl %ecx
  shll $3, %eax
  movq %rax, C_STRIDE(%rsp)
  xorl %eax, %eax                   # ticks per page = hz * processors / rate
  movq SH_RATE, %rcx
  testq %rcx, %rcx
  jz 4f
  movq SH_HZ, %rax
  mulq C_CPUS(%rsp)
  divq %rcx
  testq %rax, %rax
  jnz 4f
  incl %eax
4: movq %rax, C_INTERVAL(%rsp)
  xorl %r11d, %r11d                 # anything more to do for a page than one word?
  cmpq $1, C_WORDS(%rsp)
  jne 5f
  testq %rax, %rax
  jz 6f
5: incl %r11d
6: movl $1, %eax                    # mask and shift of the permutation
  xorl %ecx, %ecx
7: cmpq %r8, %rax
  jae 8f
  shlq $1, %rax
  incl %ecx
  jmp 7b
8: decq %rax
  movq %rax, C_MASK(%rsp)
  incl %ecx
  shrl $1, %ecx
  jnz 9f
  incl %ecx
9: movq %rcx, C_SHIFT(%rsp)
  call .Lclasses
  call .Lfill
  GW_NOW
  movq %rax, %r12
  movq %rax, %r15
  xorl %r14d, %r14d
  xorl %r10d, %r10d
  jmp .Lround

# The classes of the pattern: pages of equal period. r8 = pages.
.Lclasses:
  leaq C_TABLE+8(%rsp), %rdi        # rsp is 8 lower inside a call
  movq $0, C_SCATTER+8(%rsp)
  movq $0, C_SALT+8(%rsp)
  movq $0, C_ROUNDS_MASK+8(%rsp)
  movq $0, C_ROUNDS_SHIFT+8(%rsp)
  movq SH_PATTERN, %rax
  cmpl $2, %eax
  je .Lclasses_hot
  ja .Lclasses_zipf
  movq %rax, C_SCATTER+8(%rsp)
  imulq $0x3779fb95, %rax
  movq %rax, C_SALT+8(%rsp)
  xorl %esi, %esi
  movq %r8, %rax
  movl $1, %ecx
  call .Lclass
  jmp .Lclasses_end
.Lclasses_hot:                      # an eighth every round, the rest every 32 rounds
  movq $1, C_SCATTER+8(%rsp)
  movq $31, C_ROUNDS_MASK+8(%rsp)
  movq $5, C_ROUNDS_SHIFT+8(%rsp)
  xorl %esi, %esi
  leaq 7(%r8), %rax
  shrq $3, %rax
  movl $1, %ecx
  call .Lclass
  movq %r8, %rax
  movl $32, %ecx
  call .Lclass
  jmp .Lclasses_end
.Lclasses_zipf:                     # 16 every round, 16 every 2, 32 every 4, ... the last ones every 256
  movq $1, C_SCATTER+8(%rsp)
  movq $255, C_ROUNDS_MASK+8(%rsp)
  movq $8, C_ROUNDS_SHIFT+8(%rsp)
  xorl %esi, %esi
  movl $16, %eax
  movl $1, %ecx
1: cmpl $256, %ecx
  je 2f
  cmpq %r8, %rax
  jae 2f
  call .Lclass
  shlq $1, %rax
  shll $1, %ecx
  jmp 1b
2: movq %r8, %rax
  call .Lclass
.Lclasses_end:
  movq %rdi, C_CLASSES+8(%rsp)
  ret
.Lclass:                            # ranks rsi to rax, period ecx; rsi becomes rax
  movq %rsi, (%rdi)
  movq %rax, 8(%rdi)
  movq %rcx, 16(%rdi)
  addq $24, %rdi
  movq %rax, %rsi
  ret

# First contents and the stamps of version 0.
.Lfill:
  movq C_START+8(%rsp), %r9
  movq C_PAGES+8(%rsp), %rbp
1: testq %rbp, %rbp
  jz 9f
  movq %r9, %rbx
  shlq $12, %rbx
  addq $GW_SET, %rbx
  cmpq C_LOW+8(%rsp), %r9
  jb 2f
  addq C_HOLE+8(%rsp), %rbx
2: movq %rbx, %rdi
  movl $512, %ecx
  cmpl $1, SH_FILL
  jb 6f
  je 4f
  leaq 1(%r9), %rax                 # a generator seeded by the page
  movq $0x9e3779b97f4a7c15, %rdx
  imulq %rdx, %rax
  movq $6364136223846793005, %rdx
3: imulq %rdx, %rax
  addq %r9, %rax
  stosq
  decl %ecx
  jnz 3b
  jmp 6f
4: movl $64, %edx                   # 64 lines of text
5: leaq .Ltext(%rip), %rsi
  movl $8, %ecx
  rep movsq
  decl %edx
  jnz 5b
6: leaq GW_MARK(%r9), %rax
  movq C_WORDS+8(%rsp), %rcx
7: movq %rax, (%rbx)
  addq C_STRIDE+8(%rsp), %rbx
  decq %rcx
  jnz 7b
  incq %r9
  decq %rbp
  jmp 1b
9: ret

# ---------------------------------------------------------------------------------------------------------------------
.Lround:
  incq %r10
  leaq C_TABLE(%rsp), %rbx          # class by class
.Lnext_class:
  cmpq C_CLASSES(%rsp), %rbx
  jae .Lround_end
  movq (%rbx), %r9                  # first rank due: start + (round - start) mod period
  movq 16(%rbx), %rcx
  movq %r10, %rax
  subq %r9, %rax
  leaq -1(%rcx), %rdx
  andq %rdx, %rax
  addq %rax, %r9
  movq %r10, %rsi                   # last written a period ago, if ever
  subq %rcx, %rsi
  jns 1f
  xorl %esi, %esi
1: shlq $32, %rsi
  cmpq $0, C_SCATTER(%rsp)
  jne .Lscattered

# In order: two runs, below and above the hole. rdi = page's address, rsi = stamp it must carry, rcx = new stamp.
  movq C_START(%rsp), %r9
  movq C_PAGES(%rsp), %r8
.Lrun:
  testq %r8, %r8
  jz .Lclass_end
  movq %r10, %rcx
  shlq $32, %rcx
  leaq GW_MARK(%r9), %rax
  shrq $32, %rsi
  shlq $32, %rsi
  orq %rax, %rsi
  orq %rax, %rcx
  movq %r9, %rdi
  shlq $12, %rdi
  addq $GW_SET, %rdi
  movq %r8, %rbp
  cmpq C_LOW(%rsp), %r9
  jb 1f
  addq C_HOLE(%rsp), %rdi
  jmp 2f
1: movq C_LOW(%rsp), %rax
  subq %r9, %rax
  cmpq %rbp, %rax
  jae 2f
  movq %rax, %rbp
2: addq %rbp, %r9
  subq %rbp, %r8
  addq %rbp, %r14
.Lin_order:
  cmpq %rsi, (%rdi)
  jne .Lcorrupt
  movq %rcx, (%rdi)
  testl %r11d, %r11d
  jnz .Lmore
.Lin_order_next:
  incq %rsi
  incq %rcx
  addq $4096, %rdi
  decq %rbp
  jnz .Lin_order
  jmp .Lrun

# Scattered: rank r9 becomes a page by a permutation of the next power of two, applied until it falls inside.
.Lscattered:
  movq 8(%rbx), %r8
  movq %rsi, %r13
.Lrank:
  cmpq %r8, %r9
  jae .Lclass_end
  movq %r9, %rax
.Lpermute:
  movq C_SALT(%rsp), %rdx
  imulq %r10, %rdx
  addq %rdx, %rax
  imulq $0x1e3779b1, %rax
  andq C_MASK(%rsp), %rax
  movq %rax, %rdx
  movl C_SHIFT(%rsp), %ecx
  shrq %cl, %rdx
  xorq %rdx, %rax
  imulq $0x35ebca77, %rax
  andq C_MASK(%rsp), %rax
  cmpq C_PAGES(%rsp), %rax
  jae .Lpermute
  addq C_START(%rsp), %rax
  leaq GW_MARK(%rax), %rsi
  movq %r10, %rcx
  shlq $32, %rcx
  orq %rsi, %rcx
  orq %r13, %rsi
  movq %rax, %rdi
  shlq $12, %rdi
  addq $GW_SET, %rdi
  cmpq C_LOW(%rsp), %rax
  jae 2f
1: cmpq %rsi, (%rdi)
  jne .Lcorrupt
  movq %rcx, (%rdi)
  incq %r14
  testl %r11d, %r11d
  jnz .Lmore
.Lrank_next:
  addq 16(%rbx), %r9
  jmp .Lrank
2: addq C_HOLE(%rsp), %rdi
  jmp 1b

.Lclass_end:
  addq $24, %rbx
  jmp .Lnext_class

# What is left to do for a page: its other words, and waiting for its time.
.Lmore:
  movq C_WORDS(%rsp), %rax
  jmp 2f
1: addq C_STRIDE(%rsp), %rdi
  cmpq %rsi, (%rdi)
  jne .Lcorrupt
  movq %rcx, (%rdi)
2: decq %rax
  jnz 1b
  andq $-4096, %rdi
  movq C_INTERVAL(%rsp), %rax
  testq %rax, %rax
  jz 6f
  addq %rax, %r12
3: GW_NOW
  movq %r12, %rdx
  subq %rax, %rdx
  jle 4f
  cmpq C_HZ(%rsp), %rdx             # more than a second ahead: the counter was set back
  ja 5f
  pause
  jmp 3b
4: addq C_HZ(%rsp), %rdx            # more than a second behind: no burst to catch up
  jns 6f
5: movq %rax, %r12
6: cmpq $0, C_SCATTER(%rsp)
  je .Lin_order_next
  jmp .Lrank_next

# ---------------------------------------------------------------------------------------------------------------------
# A sweep is over when every page has been checked: one line, unless the last one was a moment ago.
.Lround_end:
  testq C_ROUNDS_MASK(%rsp), %r10
  jnz .Lround
  GW_NOW
  movq %rax, %rdx
  subq %r15, %rdx
  cmpq C_GAP(%rsp), %rdx
  jb .Lround
  movq %rax, %r15
  cmpq $1, C_CPUS(%rsp)
  je 2f
1: pause
  lock btsq $0, GW_LOCK
  jc 1b
  GW_SAY .Lsay_cpu
  movq C_CPU(%rsp), %rdi
  GW_DEC
  movb $32, %al
  GW_PUTC
2: GW_SAY .Lsay_sweep
  movq %r10, %rdi
  movl C_ROUNDS_SHIFT(%rsp), %ecx
  shrq %cl, %rdi
  GW_DEC
  GW_SAY .Lsay_pages
  movq %r14, %rdi
  GW_DEC
  movb $10, %al
  GW_PUTC
  cmpq $1, C_CPUS(%rsp)
  je .Lround
  movl $0, GW_LOCK
  jmp .Lround

# A word at rdi is not the stamp rsi: say so and stop, console locked, so that the others stop at their next line.
.Lcorrupt:
  movq %rdi, %r8
  movq %rsi, %r9
  movq (%rdi), %rbx
  movl $1000000, %ecx
1: cmpq $1, C_CPUS(%rsp)
  je 2f
  pause
  lock btsq $0, GW_LOCK
  jnc 2f
  decl %ecx
  jnz 1b
2: GW_SAY .Lsay_corrupt
  movl %r9d, %edi
  subq $GW_MARK, %rdi
  GW_DEC
  GW_SAY .Lsay_at
  movq %r8, %rdi
  andl $4095, %edi
  GW_DEC
  GW_SAY .Lsay_expected
  movq %r9, %rdi
  GW_HEX
  GW_SAY .Lsay_found
  movq %rbx, %rdi
  GW_HEX
  movb $10, %al
  GW_PUTC
  jmp .Lpark

# The console, without a stack: back to r13.
.Lputs:
  movb (%rsi), %al
  testb %al, %al
  jz 1f
  incq %rsi
  GW_PUTC
  jmp .Lputs
1: jmpq *%r13

.Lputdec:
  movq $1000000000000000000, %rcx
  xorl %ebp, %ebp                   # a digit was written
1: movq %rdi, %rax
  xorl %edx, %edx
  divq %rcx
  movq %rdx, %rdi
  cmpq $1, %rcx                     # the last digit is written even if it is a zero
  je 2f
  orl %eax, %ebp
  jz 3f
2: addb $48, %al
  GW_PUTC
3: movq %rcx, %rax                  # the next smaller power of ten
  xorl %edx, %edx
  movl $10, %ecx
  divq %rcx
  movq %rax, %rcx
  testq %rcx, %rcx
  jnz 1b
  jmpq *%r13

.Lputhex:
  movl $16, %ecx
1: rolq $4, %rdi
  movl %edi, %eax
  andl $15, %eax
  addb $48, %al
  cmpb $58, %al
  jb 2f
  addb $39, %al
2: GW_PUTC
  decl %ecx
  jnz 1b
  jmpq *%r13

.Lputs_called:                      # the same with a stack, for the start
  leaq 1f(%rip), %r13
  jmp .Lputs
.Lputdec_called:
  leaq 1f(%rip), %r13
  jmp .Lputdec
1: ret

# ---------------------------------------------------------------------------------------------------------------------
# Exceptions end the guest with a message; an NMI is taken and goes by.
.Lbuild_idt:
  movl $GW_IDT, %edi
  leaq .Lvectors(%rip), %rax
  movl $32, %ecx
1: movq %rax, %rdx
  andl $0xffff, %edx
  orl $0x80000, %edx                # selector 8
  movl %edx, (%rdi)
  movl %eax, %edx
  andl $0xffff0000, %edx
  orl $0x8e00, %edx                 # present, interrupt gate
  movl %edx, 4(%rdi)
  movq $0, 8(%rdi)
  addq $16, %rdi
  addq $8, %rax
  decl %ecx
  jnz 1b
  ret

  .balign 8
.Lvectors:
  .set GW_VECTOR, 0
  .rept 32
  .balign 8
  .if GW_VECTOR == 2
  iretq
  .else
  movb $GW_VECTOR, %dil
  jmp .Lexception
  .endif
  .set GW_VECTOR, GW_VECTOR+1
  .endr
  .balign 8

.Lexception:
  movzbl %dil, %edi
  movq %rdi, %rbx
  leaq .Lsay_exception(%rip), %rsi
  call .Lputs_called
  movq %rbx, %rdi
  call .Lputdec_called
  leaq .Lsay_at(%rip), %rsi
  call .Lputs_called
  movq (%rsp), %rdi                 # rip, or the error code and then rip
  GW_HEX
  movb $32, %al
  GW_PUTC
  movq 8(%rsp), %rdi
  GW_HEX
  movb $10, %al
  GW_PUTC
  jmp .Lpark

.Lidtr: .word 511
  .quad GW_IDT
.Lsay_up: .asciz "godwit guest"
.Lsay_ws: .asciz ": ws "
.Lsay_cpus: .asciz " MiB, processors "
.Lsay_end: .asciz "\n"
.Lsay_big: .asciz ": ws= is too large, RAM has room for "
.Lsay_mib: .asciz " MiB\n"
.Lsay_cpu: .asciz "cpu "
.Lsay_sweep: .asciz "sweep "
.Lsay_pages: .asciz " pages "
.Lsay_corrupt: .asciz "\nCORRUPT page "
.Lsay_at: .asciz " at "
.Lsay_expected: .asciz " expected "
.Lsay_found: .asciz " found "
.Lsay_exception: .asciz "\nEXCEPTION "
  .balign 8
.Ltext: .ascii "The bar-tailed godwit flies eleven days without landing, then  \n"
  .balign 4096
godwit_guest_end:
  .popsection
