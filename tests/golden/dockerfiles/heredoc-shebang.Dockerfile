FROM a
RUN <<EOF
#!/usr/bin/env python3
print("hello")
EOF
RUN python3 <<EOF
print("hello")
EOF
RUN <<EOF cat > /x && cat /x
hello
EOF
