#include "textflag.h"

// func sumAVX2(p *byte, n int) uint64
//
// A word x, taken as signed after its top bit is flipped, is x-0x8000. VPMADDWD with ones adds neighbours into 32 bits
// without a carry to think of; 0x8000 for each of the n/2 words is put back at the end.
TEXT ·sumAVX2(SB), NOSPLIT, $0-24
	MOVQ p+0(FP), SI
	MOVQ n+8(FP), CX
	MOVQ CX, DX
	VPCMPEQW Y15, Y15, Y15
	VPSLLW $15, Y15, Y14 // 0x8000 in each word
	VPSRLW $15, Y15, Y15 // 1 in each word
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3
	CMPQ CX, $128
	JB tail

loop:
	VPXOR (SI), Y14, Y4
	VPXOR 32(SI), Y14, Y5
	VPXOR 64(SI), Y14, Y6
	VPXOR 96(SI), Y14, Y7
	VPMADDWD Y15, Y4, Y4
	VPMADDWD Y15, Y5, Y5
	VPMADDWD Y15, Y6, Y6
	VPMADDWD Y15, Y7, Y7
	VPADDD Y4, Y0, Y0
	VPADDD Y5, Y1, Y1
	VPADDD Y6, Y2, Y2
	VPADDD Y7, Y3, Y3
	ADDQ $128, SI
	SUBQ $128, CX
	CMPQ CX, $128
	JAE loop

tail:
	TESTQ CX, CX
	JZ done
	VPXOR (SI), Y14, Y4
	VPMADDWD Y15, Y4, Y4
	VPADDD Y4, Y0, Y0
	ADDQ $32, SI
	SUBQ $32, CX
	JMP tail

done:
	VPADDD Y1, Y0, Y0
	VPADDD Y3, Y2, Y2
	VPADDD Y2, Y0, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDD X1, X0, X0
	VPSHUFD $0x4e, X0, X1
	VPADDD X1, X0, X0
	VPSHUFD $0xb1, X0, X1
	VPADDD X1, X0, X0
	VMOVD X0, AX
	VZEROUPPER
	MOVLQSX AX, AX
	SHLQ $14, DX // n/2 words, 0x8000 each
	ADDQ DX, AX
	MOVQ AX, ret+16(FP)
	RET
