# The boot sector of kvm_probe.py, which contains its bytes in hexadecimal.  To assemble it:
#
#   as -o probe.o kvm_probe.S && ld -Ttext 0x7c00 --oformat binary -o probe.bin probe.o
#
# The BIOS loads the sector at 0x7c00 and starts it in real mode.  It enters protected and long mode
# with paging, returns to itself by iretq, and writes a text to the serial port.  Kernels do the
# same in their first instructions.

        .intel_syntax noprefix
        .set    PML4, 0x1000            # three page tables of 4 KiB, up to 0x4000
        .set    PDPT, 0x2000
        .set    PD, 0x3000
        .set    PRESENT_WRITABLE, 0x03
        .set    LARGE_PAGE, 0x80
        .set    CR0_PROTECTED_PAGING, 0x80000001
        .set    CR4_PAE, 0x20
        .set    EFER, 0xc0000080
        .set    EFER_LONG_MODE, 0x100
        .set    CODE, 0x08              # offsets in the descriptor table
        .set    DATA, 0x10
        .set    SERIAL, 0x3f8

        .globl  _start
        .code16
_start: cli
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, offset _start

        # map the first 2 MiB to themselves
        mov     di, PML4
        mov     cx, 3 * 4096 / 4
        xor     eax, eax
        rep     stosd
        mov     dword ptr [PML4], PDPT + PRESENT_WRITABLE
        mov     dword ptr [PDPT], PD + PRESENT_WRITABLE
        mov     dword ptr [PD], LARGE_PAGE + PRESENT_WRITABLE
        mov     eax, PML4
        mov     cr3, eax

        # enter long mode
        mov     eax, cr4
        or      eax, CR4_PAE
        mov     cr4, eax
        mov     ecx, EFER
        rdmsr
        or      eax, EFER_LONG_MODE
        wrmsr
        lgdtd   [table]
        mov     eax, cr0
        or      eax, CR0_PROTECTED_PAGING
        mov     cr0, eax
        jmp     CODE:long

        .code64
long:   mov     rsp, offset _start
        push    DATA                    # the frame of iretq: ss, rsp, flags, cs, rip
        push    offset _start
        pushfq
        push    CODE
        push    offset back
        iretq

back:   mov     eax, DATA
        mov     ds, eax
        mov     ss, eax
        mov     esi, offset text
        mov     edx, SERIAL
next:   lodsb
        test    al, al
        jz      halt
        out     dx, al
        jmp     next
halt:   hlt
        jmp     halt

text:   .asciz  "\r\nit works\r\n"

descriptors:
        .quad   0
        .quad   0x00209a0000000000      # code, 64 bits
        .quad   0x0000920000000000      # data
table:  .word   table - descriptors - 1
        .word   descriptors             # the padding of the sector completes the address
