#include "textflag.h"

// func sumAVX2(b []byte) uint64
//
// Four accumulators of four 64-bit lanes. Each 64-bit lane of the input is split into its 32-bit halves, which are added
// to the lanes: no carry can get lost for any length a frame has.
TEXT ·sumAVX2(SB), NOSPLIT, $0-32
	MOVQ b_base+0(FP), SI
	MOVQ b_len+8(FP), CX
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3
	VPCMPEQD Y15, Y15, Y15
	VPSRLQ $32, Y15, Y15 // the low half of each lane
	CMPQ CX, $128
	JLT  tail

loop:
	VMOVDQU (SI), Y4
	VMOVDQU 32(SI), Y5
	VMOVDQU 64(SI), Y6
	VMOVDQU 96(SI), Y7
	VPSRLQ $32, Y4, Y8
	VPSRLQ $32, Y5, Y9
	VPSRLQ $32, Y6, Y10
	VPSRLQ $32, Y7, Y11
	VPAND  Y15, Y4, Y4
	VPAND  Y15, Y5, Y5
	VPAND  Y15, Y6, Y6
	VPAND  Y15, Y7, Y7
	VPADDQ Y4, Y0, Y0
	VPADDQ Y5, Y1, Y1
	VPADDQ Y6, Y2, Y2
	VPADDQ Y7, Y3, Y3
	VPADDQ Y8, Y0, Y0
	VPADDQ Y9, Y1, Y1
	VPADDQ Y10, Y2, Y2
	VPADDQ Y11, Y3, Y3
	ADDQ $128, SI
	SUBQ $128, CX
	CMPQ CX, $128
	JGE  loop

tail:
	CMPQ CX, $32
	JLT  done
	VMOVDQU (SI), Y4
	VPSRLQ $32, Y4, Y8
	VPAND  Y15, Y4, Y4
	VPADDQ Y4, Y0, Y0
	VPADDQ Y8, Y1, Y1
	ADDQ $32, SI
	SUBQ $32, CX
	JMP  tail

done:
	VPADDQ Y1, Y0, Y0
	VPADDQ Y3, Y2, Y2
	VPADDQ Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ X1, X0, X0
	VPSRLDQ $8, X0, X1
	VPADDQ X1, X0, X0
	VMOVQ X0, AX
	VZEROUPPER
	MOVQ AX, ret+24(FP)
	RET
