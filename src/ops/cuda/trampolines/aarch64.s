// One jump a function, through a slot that holds the real function's address once the library is open.
// Until then it holds first_call, which keeps every register that may carry an argument, has the slots filled and
// goes on through the slot in x16: x16 and x17 are free at a call.

.macro trampoline name
  .pushsection .data.rdpm_cuda_slots, "aw", %progbits
  .Lslot_\name: .xword rdpm_cuda_first_call
  .popsection
  .pushsection .text.rdpm_cuda_trampolines, "ax", %progbits
  .globl \name
  .hidden \name
  .type \name, %function
  \name:
  adrp x16, .Lslot_\name
  add x16, x16, :lo12:.Lslot_\name
  ldr x17, [x16]
  br x17
  .size \name, . - \name
  .popsection
.endm

.pushsection .data.rdpm_cuda_slots, "aw", %progbits
.balign 8
.globl rdpm_cuda_slots
.hidden rdpm_cuda_slots
rdpm_cuda_slots:
.popsection

.pushsection .text.rdpm_cuda_trampolines, "ax", %progbits
.balign 4
.type rdpm_cuda_first_call, %function
rdpm_cuda_first_call:
  .cfi_startproc
  stp x29, x30, [sp, #-224]!
  .cfi_def_cfa_offset 224
  .cfi_offset x29, -224
  .cfi_offset x30, -216
  mov x29, sp
  .cfi_def_cfa_register x29
  stp x0, x1, [sp, #16]
  stp x2, x3, [sp, #32]
  stp x4, x5, [sp, #48]
  stp x6, x7, [sp, #64]
  stp x8, x16, [sp, #80]
  stp q0, q1, [sp, #96]
  stp q2, q3, [sp, #128]
  stp q4, q5, [sp, #160]
  stp q6, q7, [sp, #192]
  bl {fill}
  ldp q6, q7, [sp, #192]
  ldp q4, q5, [sp, #160]
  ldp q2, q3, [sp, #128]
  ldp q0, q1, [sp, #96]
  ldp x8, x16, [sp, #80]
  ldp x6, x7, [sp, #64]
  ldp x4, x5, [sp, #48]
  ldp x2, x3, [sp, #32]
  ldp x0, x1, [sp, #16]
  ldp x29, x30, [sp], #224
  .cfi_def_cfa sp, 0
  ldr x17, [x16]
  br x17
  .cfi_endproc
.size rdpm_cuda_first_call, . - rdpm_cuda_first_call
.popsection
