# One jump a function, through a slot that holds the real function's address once the library is open.
# Until then it holds first_call, which keeps every register that may carry an argument, has the slots filled and
# goes on through the slot in r11: no convention gives r11 a meaning at a call.

.macro trampoline name
  .pushsection .data.rdpm_cuda_slots, "aw", @progbits
  .Lslot_\name: .quad rdpm_cuda_first_call
  .popsection
  .pushsection .text.rdpm_cuda_trampolines, "ax", @progbits
  .globl \name
  .hidden \name
  .type \name, @function
  \name:
  lea r11, [rip + .Lslot_\name]
  jmp qword ptr [r11]
  .size \name, . - \name
  .popsection
.endm

.pushsection .data.rdpm_cuda_slots, "aw", @progbits
.balign 8
.globl rdpm_cuda_slots
.hidden rdpm_cuda_slots
rdpm_cuda_slots:
.popsection

.pushsection .text.rdpm_cuda_trampolines, "ax", @progbits
.type rdpm_cuda_first_call, @function
rdpm_cuda_first_call:
  .cfi_startproc
  push rbp
  .cfi_def_cfa_offset 16
  .cfi_offset rbp, -16
  mov rbp, rsp
  .cfi_def_cfa_register rbp
  push rdi
  push rsi
  push rdx
  push rcx
  push r8
  push r9
  push rax
  push r11
  sub rsp, 128
  movups [rsp], xmm0
  movups [rsp + 16], xmm1
  movups [rsp + 32], xmm2
  movups [rsp + 48], xmm3
  movups [rsp + 64], xmm4
  movups [rsp + 80], xmm5
  movups [rsp + 96], xmm6
  movups [rsp + 112], xmm7
  call {fill}
  movups xmm0, [rsp]
  movups xmm1, [rsp + 16]
  movups xmm2, [rsp + 32]
  movups xmm3, [rsp + 48]
  movups xmm4, [rsp + 64]
  movups xmm5, [rsp + 80]
  movups xmm6, [rsp + 96]
  movups xmm7, [rsp + 112]
  add rsp, 128
  pop r11
  pop rax
  pop r9
  pop r8
  pop rcx
  pop rdx
  pop rsi
  pop rdi
  pop rbp
  .cfi_def_cfa rsp, 8
  jmp qword ptr [r11]
  .cfi_endproc
.size rdpm_cuda_first_call, . - rdpm_cuda_first_call
.popsection
